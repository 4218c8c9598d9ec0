"""``test_trl.py`` with several versions of TRL, each in a folder of its own.

TRL 1 can't be in verl's environment: if it is there, verl 0.9.1 imports a class of TRL that version 1 no longer has,
and fails when it loads a model.
"""

import inspect
import os
import subprocess
import sys

import pytest

from saw.machine.requirements import declared
from tests.conftest import ROOT

(OLDEST,) = [str(need).replace(">=", "==") for need in declared(["trl"]) if need.name == "trl"]
(PINNED,) = [line for line in (ROOT / "requirements" / "trl.txt").read_text().splitlines() if line.startswith("trl==")]


def test_verl_still_imports_what_trl_1_has_not():
    from verl.models.transformers import monkey_patch

    source = inspect.getsource(monkey_patch)
    assert "is_trl_available" in source, "the two may share an environment"
    assert "AutoModelForCausalLMWithValueHead" in source, "the two may share an environment"


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted",
    [PINNED, pytest.param(OLDEST, marks=pytest.mark.full), pytest.param("trl", marks=pytest.mark.full)],
    ids=["pinned", "oldest", "newest"],
)
def test_our_trainer_with_trl(tmp_path, wanted):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), wanted]
    got = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert got.returncode == 0, f"pip could not get {wanted}: {got.stderr[-500:]}"
    path = os.pathsep.join(map(str, (tmp_path / "site", ROOT)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_trl.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-5000:]
