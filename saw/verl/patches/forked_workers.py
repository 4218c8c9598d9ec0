"""Forks Ray workers from one process that has imported everything; on a CPU, imports are most of the start-up time.

A training has about ten Python processes, and each would spend five to ten CPU seconds on importing torch, verl and
vLLM. Ray's setting ``runtime_env.py_executable`` names the command that starts a worker: here this file, run by its
path, which asks a template process for a fork and exits. The first worker starts the template, in the environment that
Ray gives to workers. The template imports :data:`MODULES` and waits. A fork takes over the arguments, environment,
folder and output of the worker that Ray asked for, and runs Ray's own worker script.

It isn't used on a GPU node: a process that has initialised its GPUs must not be forked, and imports hardly matter
there. If the template can't be reached, the worker starts as Ray would have started it, and prints a message.

Only the standard library is imported at the top: this file runs once for each worker.
Contract: ``tests/unit/verl/test_forked_workers.py`` (Ray 2.60).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

#: Modules that the processes of a training import. The first, which keeps vLLM from silencing warnings, precedes vLLM.
MODULES = (
    "saw.verl.patches.vllm_log_level",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "verl.workers.engine_workers",
    "verl.experimental.reward_loop",
    "saw.verl.trainer",
    "ray._private.workers.default_worker",
)
#: The argument that makes this file the template.
TEMPLATE = "--template"
#: Seconds that a worker waits for its fork, the template's imports included.
PATIENCE = 300.0


def py_executable() -> str:
    """The command that starts a worker, for Ray's ``runtime_env.py_executable``."""
    return shlex.join([sys.executable, "-I", "-S", os.path.abspath(__file__)])


def serve(listener: socket.socket, modules: Sequence[str] = MODULES) -> None:
    """Import, then fork a worker for each request, until Ray's node is gone."""
    raylet = Path("/proc", os.environ["RAY_RAYLET_PID"])
    for name in modules:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers leave no zombies
    gc.collect()
    gc.freeze()  # keeps the collector from copying the shared pages
    while raylet.exists():
        if not select.select([listener], [], [], 1.0)[0]:
            continue
        connection, _ = listener.accept()
        with connection:
            if not is_mine(connection):
                continue
            _, outputs, _, _ = socket.recv_fds(connection, 1, 3)
            with connection.makefile("rb") as stream:
                request = json.loads(stream.read())
            if os.fork() == 0:
                listener.close()
                connection.sendall(b"!")
                connection.close()
                become_worker(request, outputs)
            for output in outputs:
                os.close(output)


def become_worker(request: Mapping, outputs: Sequence[int]) -> NoReturn:
    """Turn this fork into the worker that Ray asked for, and end with it."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, output in enumerate(outputs):
            os.dup2(output, number)
            os.close(output)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = request["arguments"]
        _as_if_just_imported()
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  the process ends here
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _as_if_just_imported() -> None:
    """Redo what libraries do when they are imported: read the environment, draw random numbers."""
    import numpy
    import torch

    numpy.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # 1 is Ray's default for a worker


def is_mine(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user == os.getuid()


def connect(arguments: Sequence[str]) -> socket.socket:
    """Connect to the template of this Ray node and job, starting it if there is none.

    There is one template per job, because Ray's library keeps the job in which it was imported, and ends a worker with
    that job. The socket is in Linux's abstract namespace, where a name is free again when its owner exits.

    Raises:
        OSError: if the template belongs to another user.
    """
    node = next(argument for argument in arguments if argument.startswith("--node-id="))
    job = os.environ.get("RAY_JOB_ID", "")
    address = f"\0saw-workers-{os.getuid()}-{node.partition('=')[2]}-{job}"
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address)
        except ConnectionRefusedError:
            connection.close()
            _start_template(address)
            continue
        if not is_mine(connection):
            connection.close()
            raise PermissionError("it belongs to another user")
        return connection


def _start_template(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
        except OSError:  # another worker is starting it
            time.sleep(0.05)
            return
        listener.listen(128)
        command = [sys.executable, os.path.abspath(__file__), TEMPLATE, str(listener.fileno())]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()], start_new_session=True)


def ask_for_fork(arguments: Sequence[str]) -> None:
    """Make the template fork a worker that replaces this process.

    Raises:
        OSError: if the template belongs to another user, ends, or takes longer than :data:`PATIENCE`.
    """
    request = {"arguments": list(arguments), "environment": dict(os.environ), "folder": os.getcwd()}
    with connect(arguments) as connection:
        connection.settimeout(PATIENCE)
        socket.send_fds(connection, [b"!"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1) != b"!":
            raise ConnectionAbortedError("it ended")


def main(*arguments: str) -> None:
    """Start a worker, as Ray's ``py_executable``, or be the template."""
    if arguments[0] == TEMPLATE:
        sys.path.pop(0)  # this file's folder
        serve(socket.socket(fileno=int(arguments[1])))
        return
    while arguments[0].startswith("-"):  # options of Python itself, as in "python -u worker.py"
        arguments = arguments[1:]
    try:
        ask_for_fork(arguments)
    except OSError as fault:
        sys.stderr.write(f"the template of Ray's workers can't be used ({fault}); this worker does its own imports\n")
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-u", *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
