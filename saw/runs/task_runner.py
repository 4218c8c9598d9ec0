"""verl's task runner on a running Ray cluster: started on this node, and followed until it ends or a node is lost.

verl 0.9.1 lets Ray choose the node, and so the disk to which metrics, ``run.json`` and the weights' state are written.
And it waits without a limit: if the node of TransferQueue's controller is lost, the task runner waits forever for an
answer. Contract: ``tests/contract/test_lost_nodes.py``, ``tests/e2e/test_two_nodes.py``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import ray
from omegaconf import DictConfig
from ray._private.state import actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saw.faults import TrainingEnded

logger = logging.getLogger(__name__)

#: Seconds between two checks of the nodes.
INTERVAL = 5.0
#: Seconds that a training has to end by itself after a node is lost, for its own message and perhaps a checkpoint.
GRACE = 120.0


class NodeLost(TrainingEnded):
    """A node that the training used has died, or can't be reached."""


@dataclass(frozen=True)
class OnThisNode:
    """Takes the place of verl's task runner class in ``verl.trainer.main_ppo.run_ppo``.

    Attributes:
        task_runner (Any): verl's class, a Ray actor.
        given (Mapping[str, Any]): further options of the actor.
    """

    task_runner: Any
    given: Mapping[str, Any] = field(default_factory=dict)

    def options(self, **options: Any) -> OnThisNode:
        """Add options of the actor, as Ray's own classes do."""
        return replace(self, given={**self.given, **options})

    def remote(self) -> SimpleNamespace:
        """Start the actor on the driver's node; the result has its method ``run.remote``."""
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        # Ray's default also holds no CPU, but would not start on a node without one
        actor = self.task_runner.options(num_cpus=0, scheduling_strategy=here, **self.given).remote()
        return SimpleNamespace(run=SimpleNamespace(remote=lambda config: follow(actor.run.remote(config), config)))


class UsedNodes:
    """The nodes on which a job's actors are or were, by their ids.

    Args:
        job (str): the id of Ray's job.
    """

    def __init__(self, job: str):
        self._job = job
        self._used: set[str] = set()

    def lost(self) -> list[str]:
        """Names and addresses of those that have died."""
        found = {node["NodeID"]: node for node in ray.nodes()}
        dead = {name for name, node in found.items() if not node["Alive"]}
        # remembered, because an actor's address does not outlive its node
        self._used |= {actor["Address"]["NodeID"] for actor in actors().values() if actor["JobID"] == self._job}
        lost = [found[name] for name in sorted(self._used & dead)]
        return [f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in lost]


def follow(run: Any, config: DictConfig) -> Any:
    """Wait for a training's end.

    Args:
        run (Any): Ray's reference to the task.
        config (DictConfig): verl's configuration.

    Returns:
        Any: the same reference, of a task that has ended.

    Raises:
        NodeLost: if a node is lost; after the training has failed by itself, or :data:`GRACE` seconds.
    """
    nodes = UsedNodes(ray.get_runtime_context().get_job_id())
    deadline = None
    while True:
        ended, _ = ray.wait([run], timeout=INTERVAL)
        lost = nodes.lost()
        if lost and deadline is None:
            logger.error("lost: %s; the training has %.0f s to end by itself", ", ".join(lost), GRACE)
            deadline = time.monotonic() + GRACE
        if ended:
            if lost:
                _raise_if_failed(run, lost, config)
            return run
        if deadline is not None and time.monotonic() > deadline:
            raise NodeLost(_message(lost, config))


def _raise_if_failed(run: Any, lost: list[str], config: DictConfig) -> None:
    try:
        ray.get(run)
    except ray.exceptions.RayError as error:
        logger.error("the training's own error: %r", getattr(error, "cause", error))
        raise NodeLost(_message(lost, config)) from error


def _message(lost: list[str], config: DictConfig) -> str:
    return f"the training ends, because Ray lost {', '.join(lost)}, which it used. {_remedy(config)}"


def _remedy(config: DictConfig) -> str:
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    last = find_latest_ckpt_path(config.trainer.default_local_dir)
    if last is None:
        return "There is no checkpoint: the same command starts again from step 1."
    if config.trainer.resume_mode == "auto":
        return f"With enough nodes, the same command resumes from {last}."
    return (
        f"trainer.resume_mode is {config.trainer.resume_mode!r}; with enough nodes and trainer.resume_mode=auto, the "
        f"command resumes from {last}."
    )
