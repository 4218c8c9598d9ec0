"""Several ranks of a module's ``main``, as ``torch.distributed.run`` starts them, but from one process.

That process imports the module, which takes ten seconds with verl, and forks the ranks; the launcher of torch imports
torch for itself, and each rank imports everything.

python -m tests.contract.ranks RANKS MODULE ARGUMENTS
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Seconds; the longest takes 50 on two free cores, and a busy machine six times that.
LIMIT = 600


def run_ranks(module: str, ranks: int, *arguments: object, **environment: str) -> None:
    """Run ``tests.contract.MODULE`` on ranks of one thread each.

    Raises:
        AssertionError: if a rank fails; with the end of what all of them wrote.
    """
    command = [sys.executable, "-m", "tests.contract.ranks", str(ranks), module, *map(str, arguments)]
    from tests.conftest import python_path  # not in the ranks, which need none of it

    own: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(), **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=own, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-5000:]


def _fork(main: Callable[[], None], rank: int) -> int:
    """Start a rank; returns its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        main()
        code = 0
    except BaseException:  # noqa: BLE001  whatever it is, it ends this process and not the one above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _all_end_well(children: set[int]) -> bool:
    """Wait for the ranks; the first that fails ends the others, which would wait for it."""
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            return False
    return True


def _main() -> None:
    ranks, module, *sys.argv[1:] = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    main = importlib.import_module(f"tests.contract.{module}").main
    if ranks == "1":  # not forked: CUDA, if an import has touched it, is of no use in a child
        main()
    else:
        sys.exit(not _all_end_well({_fork(main, rank) for rank in range(int(ranks))}))


if __name__ == "__main__":
    _main()
