"""Detects an agent loop worker that has died; verl 0.9.1 would wait for its samples forever.

The workers are Ray actors that put finished samples into TransferQueue. verl's replay buffer polls for the samples and
never checks whether the workers are alive. Calling a dead actor is an error, so each worker is called at regular
intervals, with Ray's own empty method. A late answer only means that the worker is busy.
Contract: ``tests/contract/test_lost_samples.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray

from saw.faults import TrainingEnded


class AgentLoopDied(TrainingEnded):
    """A process that generates samples has died, and its samples are lost."""


class Watch:
    """Checks whether the workers are alive.

    Args:
        workers (Iterable): handles of Ray actors.
    """

    def __init__(self, workers: Iterable[Any]):
        self._calls = {worker.__ray_ready__.remote(): worker for worker in workers}

    def look(self) -> None:
        """Collect the answers so far, and call again; never waits.

        Raises:
            AgentLoopDied: if a worker has died.
        """
        answered, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0) if self._calls else ([], [])
        for call in answered:
            worker = self._calls.pop(call)
            try:
                ray.get(call)
            except ray.exceptions.RayActorError as error:
                raise AgentLoopDied(died(error)) from error
            self._calls[worker.__ray_ready__.remote()] = worker


def died(error: ray.exceptions.RayActorError) -> str:
    """Ray's message about an actor's death, in one line."""
    return f"an agent loop worker has died, and its samples are lost: {' '.join(str(error).split())[:500]}"
