"""Nodes of a Ray cluster; nothing is imported, so that the doctor can speak of them in a broken environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """What Ray has on one machine.

    Attributes:
        name (str): its host name or address.
        cpus (float): logical ones, as many as Ray was told.
        gpus (float): or other accelerators.
    """

    name: str
    cpus: float
    gpus: float


class Nodes:
    """What nodes have together."""

    nodes: Sequence[Node]

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)
