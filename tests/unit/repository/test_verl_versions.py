"""scripts/verl_versions.sh with a stand-in for python: which versions it tries, and that a failed test fails it."""

import os
import shutil
from pathlib import Path

import pytest

from saw.verl.version import VERSIONS
from tests.conftest import ROOT
from tests.unit.repository.test_setup import Machine

PYTHON = """#!/usr/bin/env bash
echo "python $*" >> "$LOG"
folder=${PYTHONPATH##*/}
case "$1 ${2:-}" in
  "-c from importlib"*) echo "${folder:-$INSTALLED}" ;;
  "-c import sys; print("*) echo 3.11 ;;
  "-m pip") mkdir -p "${7}/verl"; if [[ " ${PIP_FAILS:-} " == *" $8 "* ]]; then exit 1; fi ;;
  "-m pytest") if [[ " ${FAILING:-} " == *" $folder "* ]]; then exit 1; fi ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path)
    found.has("python", PYTHON)
    for tool in ("tr", "mv"):
        (found.bin / tool).symlink_to(shutil.which(tool))
    (found.repository / "saw" / "verl").mkdir(parents=True)
    shutil.copy(ROOT / "saw" / "verl" / "version.py", found.repository / "saw" / "verl")
    return found


def versions(machine: Machine, *arguments: str, **variables: str) -> tuple[int, list[str], str]:
    """The exit status, what was tested, and what was said."""
    machine.log.unlink(missing_ok=True)
    result = machine.script(
        "verl_versions", *arguments, **{"SAW_VENV": "active", "INSTALLED": VERSIONS[-1]} | variables
    )
    tested = [line.split()[1].rstrip(":") for line in result.stdout.splitlines() if line.startswith("verl ")]
    return result.returncode, tested, result.stderr


def test_each_known_version_but_the_installed_one_is_tested(machine):
    assert versions(machine)[:2] == (0, list(VERSIONS[:-1]))
    assert versions(machine, INSTALLED=VERSIONS[0])[:2] == (0, list(VERSIONS[1:]))
    assert versions(machine, "0.9.7", VERSIONS[-1])[:2] == (0, ["0.9.7", VERSIONS[-1]])


@pytest.mark.parametrize("failing", [("0.9.0",), ("0.9.5",), ("0.9.0", "0.9.5")])
def test_a_failed_test_fails_the_script_once_all_are_tested(machine, failing):
    status, tested, said = versions(machine, "0.9.0", "0.9.5", FAILING=" ".join(failing))
    assert (status, tested) == (1, ["0.9.0", "0.9.5"])
    assert f"verl {' '.join(failing)} has changed" in said


def test_a_wheel_is_fetched_once_and_an_interrupted_download_again(machine):
    """Kind: half of a package counts as a package."""
    status, tested, _ = versions(machine, "0.9.0", PIP_FAILS="verl==0.9.0")
    assert status != 0
    assert tested == []
    for fetched in (1, 0):
        assert versions(machine, "0.9.0")[:2] == (0, ["0.9.0"])
        assert machine.log.read_text().count("-m pip install") == fetched
    assert os.listdir(machine.repository / ".cache" / "verl") == ["0.9.0"]
