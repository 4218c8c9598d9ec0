"""Nodes of a Ray cluster; imports no other package, so that the doctor can use it in a broken environment."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

#: Time limit in seconds for connecting to the port.
PORT_LIMIT = 5


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


def connect(address: str) -> None:
    """Connect to the port of an address, if it names one; Ray itself would try for minutes.

    Raises:
        OSError: if the connection fails.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PORT_LIMIT).close()
