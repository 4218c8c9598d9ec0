"""A running Ray cluster: its resources, and whether its nodes share a file system.

It is checked from a separate process, which is stopped if it gets no answer: ``ray.init`` may wait for minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saw.doctor.lines import shortened
from saw.machine.nodes import Node, Nodes, connect

#: Time limit in seconds for connecting, and for all nodes to read a file.
LIMIT = 90
REFUSED = "the token is missing or wrong"
#: Run as a script, so that Ray sends the function itself, and nodes need not have this package.
SCRIPT = """
import json, os, sys
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

path, limit = sys.argv[1], float(sys.argv[2])
ray.init(logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=0)
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return f"{type(error).__name__}: {error}"

nodes = [node for node in ray.nodes() if node["Alive"]]
asked = [read.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(path) for node in nodes]
done, _ = ray.wait(asked, num_returns=len(asked), timeout=limit)
answer = [
    {
        "name": node["NodeManagerAddress"],
        "cpus": node["Resources"].get("CPU", 0),
        "gpus": node["Resources"].get("GPU", 0),
        "read": ray.get(task) if task in done else "no answer in time",
    }
    for node, task in zip(nodes, asked)
]
print("SAW_DOCTOR" + json.dumps(answer))
"""


@dataclass(frozen=True)
class AskedNode(Node):
    """A node of a running cluster, by its address.

    Attributes:
        fault (str | None): why it cannot read a file that this machine wrote; None if it can.
    """

    fault: str | None = None


@dataclass(frozen=True)
class Cluster(Nodes):
    """The state of a running cluster.

    Attributes:
        address (str): of the cluster.
        nodes (Sequence[AskedNode]): the live ones.
        folder (str): the folder of the file that they had to read.
        error (str | None): why it did not answer.
    """

    address: str
    nodes: Sequence[AskedNode] = ()
    folder: str = ""
    error: str | None = None


def ask(script: str, environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess:
    """Run a script in another process with a time limit."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, env=dict(environ), capture_output=True, text=True, timeout=LIMIT, check=False, stdin=subprocess.DEVNULL
    )


def look(
    address: str,
    folder: Path,
    environ: Mapping[str, str] = os.environ,
    ask: Callable[..., subprocess.CompletedProcess] = ask,
    connect: Callable[[str], None] = connect,
) -> Cluster:
    """Connect to a cluster, and have each node read a file that this machine writes.

    Args:
        address (str): as in ``RAY_ADDRESS``.
        folder (Path): where the training will write; the file is in it, or in its nearest existing parent.
        environ (Mapping[str, str]): with the variables that Ray needs, such as a token.
        ask (Callable): runs the script.
        connect (Callable[[str], None]): tries the port, raises OSError.

    Returns:
        Cluster: with an error if it cannot be reached.
    """
    try:
        connect(address)
    except OSError as error:
        return Cluster(address, error=f"nothing listens there: {error}")
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    text = uuid.uuid4().hex
    file = folder / f".saw-doctor-{text}"
    try:
        file.write_text(text)
        environ = {**environ, "RAY_ADDRESS": address}
        result = ask(SCRIPT, environ, str(file), str(LIMIT / 2))
    except subprocess.TimeoutExpired:
        return Cluster(address, error=f"no answer within {LIMIT} s")
    except OSError as error:
        return Cluster(address, error=f"this machine cannot write {file}: {error}")
    finally:
        file.unlink(missing_ok=True)
    answers = [line for line in result.stdout.splitlines() if line.startswith("SAW_DOCTOR")]
    if result.returncode != 0 or not answers:
        if "AuthenticationError" in result.stderr:  # the last line does not show it
            return Cluster(address, error=REFUSED)
        last = [line for line in result.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        return Cluster(address, error=shortened(last[0]))
    nodes = tuple(
        AskedNode(
            node["name"], node["cpus"], node["gpus"], None if node["read"] == text else shortened(node["read"], 80)
        )
        for node in json.loads(answers[-1].removeprefix("SAW_DOCTOR"))
    )
    return Cluster(address, nodes, str(folder))
