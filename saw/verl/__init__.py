"""The plug-in: importing this package registers SAW with verl.

verl imports it in every process: by the entry point ``verl.plugins`` once this package is installed, and loudly by
``VERL_USE_EXTERNAL_MODULES=saw.verl``. It then has

- a trainer, ``trainer.v1.trainer_mode=saw`` (:mod:`saw.verl.trainer`),
- an advantage estimator, ``algorithm.adv_estimator=saw`` (:mod:`saw.verl.estimator`),
- a reward manager, ``reward.reward_manager.name=saw`` (:mod:`saw.verl.reward_manager`),
- a rollout that shares a machine with others (:mod:`saw.verl.rollout`),
- a check of the configuration before Ray starts (:mod:`saw.verl.settings`),

all set by one configuration section, ``saw``, which is :class:`saw.verl.settings.Settings`.
"""

import importlib
import os

from saw.verl.version import check_version

check_version()

if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    # Before anything of verl asks which platform it is on, or imports what the CPU has to bend.
    from saw.verl import cpu  # noqa: F401

from verl.workers.rollout import base, replica  # noqa: E402

from saw.verl import early_check, estimator, logs, reward_manager, trainer  # noqa: E402, F401

# By name, and loaded when asked for: vLLM takes seconds to import, and most processes do without it.
base._ROLLOUT_REGISTRY["vllm", "async"] = "saw.verl.rollout.ServerAdapter"
replica.RolloutReplicaRegistry.register("vllm", lambda: importlib.import_module("saw.verl.rollout").Replica)
