"""verl on a CPU: sends a trainer's weights to a separate rollout, in ``separate_async``.

verl 0.9.1 has checkpoint engines for NCCL, NIXL and the like, but none for a CPU. This one puts all weights of a step
into a torch store, which is enough for the small models of a rehearsal.
Contract: ``tests/contract/test_async.py``.
"""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Iterable
from datetime import timedelta
from typing import Any

import ray
import torch
from torch.distributed import TCPStore
from torch.distributed.tensor import DTensor
from verl.checkpoint_engine.base import CheckpointEngine

#: Key of the weights in the store.
KEY = "weights"
PATIENCE = timedelta(minutes=5)


class CPUCheckpointEngine(CheckpointEngine):
    """The trainer's first rank serves a store, and every other process is its client.

    Args:
        bucket_size (int): verl's bucket size; not used, the weights are sent in one piece.
        is_master (bool): whether this is the trainer's first rank.
    """

    def __init__(self, bucket_size: int, is_master: bool = False):
        self._store: TCPStore | None = None
        self._is_master = is_master

    def prepare(self) -> dict[str, Any]:
        """Start the store, once, and return its address."""
        if not self._is_master:
            return {}
        host = ray.util.get_node_ip_address().strip("[]")
        if self._store is None:
            self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        return {"host": host, "port": self._store.port}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Pass the store's address to every process; ``metadata`` begins with the trainer's first rank."""
        return {"address": [metadata[0]] * actor_wg_world_size}, {"address": [metadata[0]] * rollout_world_size}

    def init_process_group(self, address: dict[str, Any]) -> None:  # type: ignore[override]
        """Connect to the store, once: its address does not change."""
        if self._store is None:
            self._store = TCPStore(
                address["host"], address["port"], is_master=False, wait_for_workers=False, timeout=PATIENCE
            )

    @torch.no_grad()
    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        """Put the weights into the store; every rank gathers, and only the first sends."""
        gathered = {
            name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).cpu().clone()
            for name, weight in weights
        }
        if self._is_master:
            buffer = io.BytesIO()
            torch.save(gathered, buffer)
            self._connected.set(KEY, buffer.getvalue())  # type: ignore[arg-type]

    async def receive_weights(  # type: ignore[override]
        self, global_steps: int | None = None
    ) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Wait for the weights, and yield each with its name."""
        for item in torch.load(io.BytesIO(self._connected.get(KEY)), weights_only=True).items():
            yield item

    def finalize(self) -> None:
        """Remove the weights once all have received them: the next ones have the same key."""
        if self._is_master:
            self._connected.delete_key(KEY)

    @property
    def _connected(self) -> TCPStore:
        if self._store is None:
            raise RuntimeError("the weights' store is used before init_process_group has connected to it")
        return self._store
