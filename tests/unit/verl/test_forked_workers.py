"""A forked worker is what Ray would have started: arguments, environment, folder, output, end; and never nothing."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from saw.verl.patches import forked_workers

pytestmark = pytest.mark.slow  # each starts an interpreter or three

WORKER = """
import json, os, signal, sys, threading
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "folder": os.getcwd(), "name": __name__,
    "colour": os.environ.get("COLOUR"), "marked": "marker" in sys.modules, "threads": threading.active_count(),
    "children": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
}), flush=True)
print("to stderr", file=sys.stderr)
import atexit; atexit.register(print, "bye")
if "--fail" in sys.argv: raise KeyError("on purpose")
if "--exit" in sys.argv: sys.exit(7)
"""


class Node:
    """A Ray node as the workers see it: a process id, a node id; its template imports just a marker."""

    def __init__(self, folder: Path, modules: tuple[str, ...] = ("marker",)):
        self.folder = folder
        self.raylet = subprocess.Popen(["sleep", "600"])
        self.id = uuid.uuid4().hex
        self.started = 0
        source = Path(forked_workers.__file__).read_text()
        source, found = re.subn(
            r"^MODULES = \(.*?^\)", f"MODULES = {modules!r}", source, flags=re.DOTALL | re.MULTILINE
        )
        assert found == 1
        self.launcher = folder / "launcher.py"
        self.launcher.write_text(source)
        (folder / "marker.py").write_text("")
        (folder / "worker.py").write_text(WORKER)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        command = [sys.executable, "-I", "-S", str(self.launcher), "-u", str(self.folder / "worker.py")]
        environment = {
            **os.environ,
            "RAY_RAYLET_PID": str(self.raylet.pid),
            "PYTHONPATH": str(self.folder),
            **variables,
        }
        self.started += 1
        outputs = [self.folder / f"{self.started}.{name}" for name in ("out", "err")]
        with outputs[0].open("w") as out, outputs[1].open("w") as err:
            launcher = subprocess.Popen(
                [*command, f"--node-id={self.id}", *arguments], cwd=self.folder, env=environment, stdout=out, stderr=err
            )
        launcher.outputs = outputs  # type: ignore[attr-defined]
        return launcher

    def templates(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if [str(self.launcher), forked_workers.TEMPLATE] == (process.info["cmdline"] or [])[1:3]:
                found.append(process)
        return [process for process in found if process.ppid() not in {other.pid for other in found}]

    def stop(self) -> None:
        self.raylet.kill()
        self.raylet.wait()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    for process in node.templates():
        process.kill()
    node.stop()


def ended(launcher: subprocess.Popen) -> tuple[dict, str, str]:
    """A worker's report, the rest of its output, and its errors, once it has ended."""
    out, err = launcher.outputs  # type: ignore[attr-defined]
    launcher.wait(timeout=60)
    deadline = time.monotonic() + 60
    while "\n" not in out.read_text():
        assert time.monotonic() < deadline, err.read_text()
        time.sleep(0.02)
    report = json.loads(out.read_text().partition("\n")[0])
    while psutil.pid_exists(report["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return report, out.read_text().partition("\n")[2], err.read_text()


def test_a_fork_takes_over_what_ray_gave_the_worker(node):
    launcher = node.start("--port=7", COLOUR="blue")
    report, rest, errors = ended(launcher)
    assert launcher.returncode == 0
    assert report["arguments"] == [str(node.folder / "worker.py"), f"--node-id={node.id}", "--port=7"]
    assert (report["colour"], report["folder"], report["name"]) == ("blue", str(node.folder), "__main__")
    assert report["pid"] != launcher.pid
    assert report["marked"]
    assert report["children"]
    assert (rest, errors) == ("bye\n", "to stderr\n")
    other, _, _ = ended(node.start(COLOUR="red"))
    assert other["colour"] == "red"
    assert other["parent"] == report["parent"] == node.templates()[0].pid


def test_workers_that_start_at_once_share_one_template(node):
    parents = {ended(worker)[0]["parent"] for worker in [node.start() for _ in range(6)]}
    assert len(parents) == 1


def test_each_job_has_its_own_template(node):
    """Kind: a second job on a cluster, whose workers Ray ends because the first one has finished."""
    parents = [ended(node.start(RAY_JOB_ID=job))[0]["parent"] for job in ("01000000", "02000000", "01000000")]
    assert parents[0] == parents[2] != parents[1]


@pytest.mark.parametrize(("option", "sign"), [("--fail", "KeyError: 'on purpose'"), ("--exit", "to stderr")])
def test_a_worker_that_fails_says_why_and_harms_no_other(node, option, sign):
    _, rest, errors = ended(node.start(option))
    assert sign in errors
    assert "bye" in rest
    assert ended(node.start())[0]["marked"]


def test_the_template_ends_with_the_node(node):
    ended(node.start())
    (template,) = node.templates()
    node.stop()
    template.wait(timeout=20)


def test_a_template_that_was_killed_is_replaced(node):
    first = ended(node.start())[0]["parent"]
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([process for process in psutil.process_iter() if process.pid == first], timeout=20)
    assert ended(node.start())[0]["parent"] != first


@pytest.mark.parametrize("modules", [("there_is_no_such_module",), ("os", "this_is_missing.too")])
def test_without_a_template_the_worker_starts_as_usual_and_says_so(tmp_path, modules):
    """A fallback is never silent: a template that cannot import, one that ends."""
    node = Node(tmp_path, modules)
    try:
        worker = node.start("--port=7")
        report, _, errors = ended(worker)
    finally:
        node.stop()
    assert report["pid"] == worker.pid
    assert report["arguments"][1:] == [f"--node-id={node.id}", "--port=7"]
    assert not report["marked"]
    assert "this worker does its own imports" in errors
    assert "No module named" in errors


def test_a_template_of_another_user_is_not_asked(monkeypatch, node):
    ended(node.start())
    monkeypatch.setattr(forked_workers, "is_mine", lambda connection: False)
    with pytest.raises(PermissionError, match="another user"):
        forked_workers.connect(["worker.py", f"--node-id={node.id}"])


def test_what_ray_starts_workers_with():
    """Ray 2.60: py_executable comes before the worker's script and arguments, and the environment names the raylet."""
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.workers import default_worker

    source = inspect.getsource(RuntimeEnvContext.exec_worker)
    assert 'executable = ["exec", self.py_executable]' in source
    assert "cmd = [*self.command_prefix, *executable, *passthrough_args]" in source
    assert '"--node-id"' in inspect.getsource(default_worker)
    command = forked_workers.py_executable().split()
    assert command[0] == sys.executable
    assert command[-1] == forked_workers.__file__


def test_random_numbers_differ_between_forks(node):
    (node.folder / "worker.py").write_text(
        "import json, os, random, numpy, uuid\n"
        "print(json.dumps({'pid': os.getpid(), 'numbers': [random.random(), numpy.random.rand(), uuid.uuid4().hex]}))\n"
    )
    first, second = (ended(node.start())[0]["numbers"] for _ in range(2))
    assert not set(first) & set(second)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_as_the_workers_environment_says(node, threads):
    (node.folder / "worker.py").write_text(
        "import json, os, torch\nprint(json.dumps({'pid': os.getpid(), 'threads': torch.get_num_threads()}))\n"
    )
    assert ended(node.start(OMP_NUM_THREADS=str(threads)))[0]["threads"] == threads


def test_a_template_waits_for_no_one_who_says_nothing(node):
    """A client that connects and ends, as a killed launcher does, must not stop the template."""
    ended(node.start())
    for _ in range(3):
        forked_workers.connect([f"--node-id={node.id}"]).close()
    time.sleep(0.2)
    assert ended(node.start())[0]["marked"]
