"""Runs a script of this folder as the ranks of ``torch.distributed.run``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, python_path

#: Seconds; the longest takes 50 on two free cores, and a busy machine six times that.
LIMIT = 600


def run_ranks(script: str, number: int, *arguments: Path | str, **environment: str) -> None:
    """Run the ranks to their end, on a CPU unless the environment says otherwise.

    Args:
        script (str): its name.
        number (int): of ranks.
        arguments (Path | str): of the script.
        environment (str): further variables.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"),
        str(ROOT / "tests" / "contract" / script),
        *map(str, arguments),
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(), **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-5000:]
