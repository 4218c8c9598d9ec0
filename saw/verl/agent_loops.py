"""Notice an agent loop worker that has died; verl 0.9.1 would wait for its samples for ever.

The workers are Ray actors that put samples into TransferQueue when these are done, and verl's replay buffer polls for
them: it never looks whether anybody is still at work. A call to an actor that has died is an error, so each worker
is called now and then, with Ray's own empty method; an answer that is late, from a busy worker, means nothing.
Contract: ``tests/contract/test_lost_samples.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray


class AgentLoopDied(RuntimeError):
    """A process that generates samples is gone, and its samples with it."""


class Watch:
    """Looks whether the workers live.

    Args:
        workers (Iterable): handles of Ray actors.
    """

    def __init__(self, workers: Iterable[Any]):
        self._calls = {worker.__ray_ready__.remote(): worker for worker in workers}

    def look(self) -> None:
        """Take the answers that have come, and ask again; never waits.

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
    """What Ray says of an actor's death, in one line."""
    return f"an agent loop worker has died, and its samples with it: {' '.join(str(error).split())[:500]}"
