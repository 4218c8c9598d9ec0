"""The plug-in: importing this package registers SAW with verl.

verl imports it in every process: by the entry point ``verl.plugins`` once this package is installed, and loudly by
``VERL_USE_EXTERNAL_MODULES=saw.verl``. It then has

- a trainer, ``trainer.v1.trainer_mode=saw`` (:mod:`saw.verl.trainer`),
- an advantage estimator, ``algorithm.adv_estimator=saw`` (:mod:`saw.verl.estimator`),
- a reward manager, ``reward.reward_manager.name=saw`` (:mod:`saw.verl.reward_manager`),
- a check of the configuration before Ray starts (:mod:`saw.verl.settings`),

all set by one configuration section, ``saw``, which is :class:`saw.verl.settings.Settings`.
"""

import os

from saw.verl.version import check_version

check_version()

if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    # Before anything of verl asks which platform it is on, or imports what the CPU has to bend.
    from saw.verl import cpu  # noqa: F401

from saw.verl import early_check, estimator, reward_manager, trainer  # noqa: E402, F401
