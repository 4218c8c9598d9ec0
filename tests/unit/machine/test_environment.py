"""Commands for a person: they work in a shell in which the environment is not active, and in one in which it is."""

import os
import shlex
import subprocess
import sys

import pytest

from saw.machine import environment
from tests.conftest import ROOT


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An environment in a folder with a space, below the current folder, which nothing on PATH leads to."""
    folder = tmp_path / "my env" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "hf"):
        (folder / name).symlink_to(sys.executable)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    return folder


@pytest.mark.parametrize("name", ["python", "hf"])
def test_an_environment_that_is_not_active_is_named_by_its_path(here, monkeypatch, name):
    assert environment.program(name) == f"'my env/bin/{name}'"
    (here.parents[1] / "elsewhere" / name).symlink_to(sys.executable)  # another environment of the same Python
    assert environment.program(name) == f"'my env/bin/{name}'"
    monkeypatch.chdir("elsewhere")
    assert environment.program(name) == f"'{here}/{name}'"


def test_an_active_environment_s_programs_have_no_path(here, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    assert (environment.program("python"), environment.program("hf")) == ("python", "hf")
    (here / "python3.11").symlink_to((here / "python").readlink())
    monkeypatch.setattr(sys, "executable", str(here / "python3.11"))
    assert environment.python() == "python"
    (here / "python").unlink()
    (here / "python").write_text("#!/bin/sh\n")  # /usr/bin has several
    (here / "python").chmod(0o755)
    assert environment.python() == "'my env/bin/python3.11'"


def test_a_program_that_the_environment_lacks_is_its_name(here):
    assert environment.program("wandb") == "wandb"


def test_what_is_typed_runs_this_python():
    command = f"{environment.python()} -c 'import sys; print(sys.prefix)'"
    shell = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=shell, check=True)
    assert done.stdout.strip() == sys.prefix


@pytest.mark.parametrize(("has_pip", "expected"), [(True, "{} -m pip install"), (False, "uv pip install --python {}")])
def test_packages_are_installed_into_this_environment(monkeypatch, has_pip, expected):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object() if has_pip else None)
    assert environment.pip_install() == expected.format(environment.python())


@pytest.mark.parametrize(
    ("mark", "environ", "expected"),
    [
        ("gpu 0123456789abcdef dev\n", {}, "gpu"),
        ("gpu 0123456789abcdef dev\n", {"SAW_VENV": "/some/folder"}, "gpu"),
        ("cpu made\n", {"SAW_VENV": "active"}, None),
        ("", {}, None),
        (None, {}, None),
    ],
)
def test_who_made_an_environment(tmp_path, mark, environ, expected):
    if mark is not None:
        (tmp_path / environment.MARK).write_text(mark)
    assert environment.made_for(environ, str(tmp_path)) == expected


@pytest.mark.parametrize("made_for", [None, "cpu", "gpu"])
def test_only_where_set_up_installs_it_is_the_remedy(monkeypatch, made_for):
    """Kind: advice that goes in a circle, as set-up only checks an environment that it did not make."""
    monkeypatch.setattr(environment, "made_for", lambda: made_for)
    assert ("setup.sh" in environment.cuda()) == (made_for is not None)
    assert ("setup.sh" in environment.flash_attn()) == (made_for is not None)


@pytest.mark.parametrize(
    ("made_for", "torch", "expected"),
    [
        ("gpu", "2.11.0", "bash scripts/setup.sh --flash-attn"),
        ("cpu", "2.13.0+cpu", "--set gpu --flash-attn"),
        ("released", "2.11.0", "--set gpu --flash-attn"),  # the CUDA build, in a set for a CPU
        (None, "2.13.0+cpu", "on the GPU node"),
        (None, "2.11.0+cu130", "pip install --no-build-isolation flash-attn"),
    ],
)
def test_flash_attn_is_never_offered_for_a_cpu_s_environment(monkeypatch, made_for, torch, expected):
    monkeypatch.setattr(environment, "made_for", lambda: made_for)
    monkeypatch.setattr(environment.metadata, "version", {"torch": torch}.__getitem__)
    monkeypatch.setattr(environment, "pip_install", lambda: "pip install")
    assert expected in environment.flash_attn()
    assert ("pip install" in environment.flash_attn()) == ("pip" in expected)


def test_a_damaged_environment_is_made_again(monkeypatch):
    """Kind: set-up passes over an environment that has its mark, whatever is left in it."""
    monkeypatch.setattr(environment, "made_for", lambda: "cpu")
    monkeypatch.delenv("SAW_VENV", raising=False)
    assert environment.set_up("cpu").startswith("bash scripts/setup.sh --set cpu;")
    assert sys.prefix in environment.set_up("cpu")
    assert sys.prefix not in environment.set_up("gpu")  # another folder
    monkeypatch.setenv("SAW_VENV", "mine")
    assert environment.set_up("cpu").startswith(f"SAW_VENV={shlex.quote(sys.prefix)} bash")


def test_flash_attn_is_the_version_that_set_up_builds():
    assert environment.FLASH_ATTN in (ROOT / "scripts" / "setup.sh").read_text()
    assert environment.FLASH_ATTN in (ROOT / "docs" / "attention.md").read_text()
    assert environment.MARK in (ROOT / "scripts" / "setup.sh").read_text()


def test_it_needs_no_package():
    """Kind: the doctor in a broken environment."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from saw.machine import environment; print(environment.python())"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(ROOT)], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
