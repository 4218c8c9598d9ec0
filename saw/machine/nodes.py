"""Nodes of a Ray cluster; imports nothing, so that the doctor can use it in a broken environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """Ray's resources on one machine.

    Attributes:
        name (str): its host name or address.
        cpus (float): logical CPUs, as many as Ray was started with.
        gpus (float): or other accelerators.
    """

    name: str
    cpus: float
    gpus: float


class Nodes:
    """The resources of several nodes together."""

    nodes: Sequence[Node]

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)
