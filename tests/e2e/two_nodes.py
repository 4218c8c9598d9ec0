"""Two Ray nodes on this machine, as far apart as two machines.

Each has its own network (joined by one cable), host name, process ids, ``/tmp`` and ``/dev/shm``; they share the
folders that are named, and nothing else that a training writes to. Linux namespaces do it, which needs root. None of
them has a name: they live as long as processes that the kernel ends with this one, so a killed test leaves nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "mount")
PORT = 6379
#: Per node, just what a training on two nodes asks for: a GPU's three, a storage unit, and the controller on either.
CPUS = 5
#: Seconds for Ray to start on a node.
LIMIT = 120
#: What the first process of a node does. Arguments: host name, the node's folder, the program, its arguments.
BOOT = """
set -e
mount --bind "$3/hosts" /etc/hosts
"$1" -c 'import socket, sys; socket.sethostname(sys.argv[1])' "$2"
for place in /dev/shm /tmp; do  # the folder may be in /tmp
  own="$3$place"
  for shared in $SHARED; do
    case "$shared" in
      "$place"/*) mkdir -p "$own${shared#"$place"}" && mount --bind "$shared" "$own${shared#"$place"}" ;;
    esac
  done
  mount --rbind "$own" "$place"
done
shift 3
"$@" & wait
"""
#: What making a node needs to be allowed to do.
TRY = "mount -t tmpfs tmpfs /dev/shm && ip link add try0 type veth peer name try1"


def why_not() -> str | None:
    """Why there can't be two nodes here; None if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "two Ray nodes on one machine need root on Linux"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"two Ray nodes on one machine need the programs {', '.join(missing)} (iproute2, util-linux)"
    command = (*_unshare(), "--net", "bash", "-c", TRY)
    tried = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if tried.returncode:
        return f"two Ray nodes on one machine need namespaces, which may not be made here: {tried.stderr.strip()}"
    return None


@dataclass
class Node:
    """One of the two.

    Attributes:
        name (str): its host name.
        address (str): its IP address.
        folder (Path): its own ``/tmp`` and ``/dev/shm`` are in it.
        network (subprocess.Popen): a process that does nothing, in the node's network.
        environment (Mapping[str, str]): of every process on it.
    """

    name: str
    address: str
    folder: Path
    network: subprocess.Popen
    environment: Mapping[str, str]
    shared: Sequence[Path]
    _boot: subprocess.Popen | None = field(default=None, repr=False)
    _others: list[subprocess.Popen] = field(default_factory=list, repr=False)

    @property
    def log(self) -> Path:
        """What its first program printed."""
        return self.folder / "node.log"

    def boot(self, *command: str) -> None:
        """Start the node, which lasts as long as this command; it may not run yet."""
        for place in ("tmp", "dev/shm"):
            shutil.rmtree(self.folder / place, ignore_errors=True)
            (self.folder / place).mkdir(parents=True)
        inside = (*_unshare(), "bash", "-c", BOOT, "boot", sys.executable, self.name, str(self.folder), *command)
        with self.log.open("w") as log:
            self._boot = subprocess.Popen(
                [*_with_this_process(), *self._in_network(), *inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, "SHARED": " ".join(map(str, self.shared))},
                start_new_session=True,
            )
        while not psutil.Process(self._boot.pid).children():
            assert self._boot.poll() is None, f"{self.name} did not start: {self.log.read_text()}"
            time.sleep(0.01)

    def start_ray(self, *options: str) -> None:
        """Boot the node with ``ray start``, and wait until Ray runs."""
        self.boot(
            str(Path(sys.executable).with_name("ray")),
            *("start", "--block", "--disable-usage-stats", f"--node-ip-address={self.address}", *options),
            *("--num-gpus=1", f"--num-cpus={CPUS}", "--object-store-memory=150000000"),
        )
        assert self._boot is not None
        deadline = time.monotonic() + LIMIT
        while "--block" not in self.log.read_text():  # printed at the end
            assert self._boot.poll() is None, f"{self.name} did not start: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"{self.name} did not start in time: {self.log.read_text()}"
            time.sleep(0.1)

    @property
    def first(self) -> psutil.Process:
        """The node's first process: the kernel ends the others with it."""
        assert self._boot is not None
        return psutil.Process(self._boot.pid).children()[0]

    def command(self, *command: str) -> list[str]:
        """What runs a command on this node."""
        return ["nsenter", "-t", str(self.first.pid), "-m", "-n", "-p", "-u", "--", *command]

    def spawn(self, *command: str) -> None:
        """Start a process that ends with the node."""
        self._others.append(
            subprocess.Popen(
                self.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(self.environment),
                start_new_session=True,
            )
        )

    def processes(self) -> list[str]:
        """The command lines of the node's processes, zombies left out."""
        lines = []
        space = _process_space(self.first)
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if _process_space(process) == space and process.status() != psutil.STATUS_ZOMBIE:
                    lines.append(" ".join(process.cmdline()))
        return lines

    def connect(self) -> None:
        """Turn its network on."""
        for link in ("lo", "eth0"):
            self._ip("link", "set", link, "up")
        self._ip("addr", "replace", f"{self.address}/24", "dev", "eth0")
        # programs find their own address by asking for the way to some other one
        self._ip("route", "replace", "default", "dev", "eth0")

    def lose(self) -> None:
        """As when the power fails: the network is dead first, so nobody is told."""
        self._ip("link", "set", "eth0", "down")
        self.stop()

    def _in_network(self) -> list[str]:
        return ["nsenter", "-t", str(self.network.pid), "-n", "--"]

    def _ip(self, *arguments: str) -> None:
        _run(*self._in_network(), "ip", *arguments)

    def stop(self) -> None:
        """End every process of the node."""
        if self._boot is None:
            return
        if self._boot.poll() is None:
            for process in psutil.Process(self._boot.pid).children():
                process.send_signal(signal.SIGKILL)
        self._boot.kill()
        for process in (self._boot, *self._others):
            process.wait()
        self._boot, self._others = None, []


@contextmanager
def two_nodes(folder: Path, shared: Sequence[Path], environment: Mapping[str, str]) -> Iterator[tuple[Node, Node]]:
    """Two nodes without Ray, :meth:`Node.start_ray`; everything is taken away when the block ends.

    Args:
        folder (Path): for what belongs to one node.
        shared (Sequence[Path]): folders that both have; without spaces in their names.
        environment (Mapping[str, str]): of their processes.
    """
    with ExitStack() as ending:
        nodes = tuple(
            Node(f"node-{letter}", f"10.77.0.{number}", folder / letter, _network(ending), environment, shared)
            for number, letter in enumerate("ab", start=1)
        )
        ends = [("eth0", "netns", str(node.network.pid)) for node in nodes]
        _run("ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for node in nodes:
            node.folder.mkdir(parents=True)
            hosts = "".join(f"{each.address} {each.name}\n" for each in nodes)
            (node.folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
            node.connect()
            ending.callback(node.stop)
        yield nodes


def _network(ending: ExitStack) -> subprocess.Popen:
    """A process in a network of its own, which ends with it."""
    process = subprocess.Popen(
        [*_with_this_process(), "unshare", "--net", "sh", "-c", "echo && exec sleep infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    ending.callback(process.wait)
    ending.callback(process.kill)
    assert process.stdout is not None
    process.stdout.readline()  # it is there
    return process


def _with_this_process() -> list[str]:
    """What makes the kernel end a command with this process, even if it is killed."""
    return ["setpriv", "--pdeathsig", "KILL"]


def _process_space(process: psutil.Process) -> str:
    return os.readlink(f"/proc/{process.pid}/ns/pid")


def _unshare() -> list[str]:
    return ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
