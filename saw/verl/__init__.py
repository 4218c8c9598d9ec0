"""The plug-in: importing this package registers SAW with verl.

verl imports it in every process: through the entry point ``verl.plugins`` once this package is installed, or, with
errors shown, through ``VERL_USE_EXTERNAL_MODULES=saw.verl``. It adds

- three trainers, ``trainer.v1.trainer_mode=saw`` and two asynchronous ones (:mod:`saw.verl.trainer`),
- an advantage estimator, ``algorithm.adv_estimator=saw`` (:mod:`saw.verl.estimator`),
- a reward manager, ``reward.reward_manager.name=saw`` (:mod:`saw.verl.reward_manager`),
- an agent loop, ``seeded_single_turn_agent`` (:mod:`saw.verl.seeded_sampling`),
- the configuration group ``plugin``, whose ``+plugin=saw`` selects ``saw`` of each (:mod:`saw.verl.search_path`),
- a check of the configuration before Ray starts (:mod:`saw.verl.patches.validate_config`),
- for a training that uses them, a rollout that can share a machine with others (:mod:`saw.verl.patches.weight_socket`),

all set by one configuration section, ``saw``, which is :class:`saw.verl.config.Settings`.

Almost nothing is loaded here. Each registration waits until verl's registry is imported, and each part is loaded on
first use: the trainer in the task runner, the reward manager in the reward workers.
"""

import os
from typing import Any

from wrapt import lazy_import, when_imported

from saw.verl.names import ACTIVE, MODES, NAME, SEEDED
from saw.verl.version import check_version

check_version()

if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    import saw.verl.patches.cpu  # noqa: F401  before verl detects its platform


@when_imported("verl.trainer.ppo.v1.trainer_base")
def _register_trainers(trainer_base: Any) -> None:
    classes = ("SAWTrainer", "SAWColocateAsyncTrainer", "SAWSeparateAsyncTrainer")
    for mode, name in zip(MODES, classes, strict=True):
        trainer_base.TRAINER_REGISTRY[mode] = lazy_import("saw.verl.trainer", name)


@when_imported("verl.trainer.ppo.core_algos")
def _register_estimator(core_algos: Any) -> None:
    core_algos.register_adv_est(NAME)(lazy_import("saw.verl.estimator", "estimate"))


@when_imported("verl.experimental.reward_loop.reward_manager.registry")
def _register_reward_manager(registry: Any) -> None:
    registry.register(NAME)(lazy_import("saw.verl.reward_manager", "MultiRewardManager"))


@when_imported("verl.experimental.agent_loop.agent_loop")
def _register_agent_loop(agent_loop: Any) -> None:
    agent_loop._agent_loop_registry[SEEDED] = {"_target_": "saw.verl.seeded_sampling.SeededSingleTurn"}


@when_imported("hydra")
def _register_configuration(hydra: Any) -> None:
    from saw.verl import search_path

    search_path.register()


@when_imported("verl.utils.config")
def _check_early(config: Any) -> None:
    from saw.verl.patches.validate_config import wrap

    wrap(config)


@when_imported("verl.workers.rollout.base")
def _register_rollout(base: Any) -> None:
    if os.environ.get(ACTIVE) == "1":
        base._ROLLOUT_REGISTRY["vllm", "async"] = "saw.verl.patches.weight_socket.ServerAdapter"


@when_imported("verl.workers.rollout.replica")
def _register_replica(replica: Any) -> None:
    if os.environ.get(ACTIVE) == "1":
        replica.RolloutReplicaRegistry.register("vllm", _replica)


def _replica() -> type:
    from saw.verl.patches.weight_socket import Replica

    return Replica
