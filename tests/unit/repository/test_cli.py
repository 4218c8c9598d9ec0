"""The command ``saw``: every command is listed, says an example, and becomes the process of its module."""

import importlib.util
import os
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from saw import cli, command
from saw.faults import WrongVersion
from tests.conftest import ROOT


@pytest.fixture
def started(monkeypatch):
    """Commands that would have been started."""
    found = []
    monkeypatch.setattr(cli.os, "execve", lambda *started: found.append(started))
    return found


def invoke(*arguments):
    return CliRunner().invoke(cli.app, arguments)


def test_every_command_is_listed():
    for option in ("--help", "-h"):
        listed = invoke(option).output
        for name in cli.COMMANDS:
            assert f"\n  {name} " in listed


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_shows_an_example_that_starts_the_command(name, started, monkeypatch):
    """Kind: an example whose first argument is not a part of the command, or a module that does not exist."""
    command = cli.COMMANDS[name]
    for option in ("--help", "-h"):
        assert f"saw {name} {command.example}" in invoke(name, option).output
    started.clear()
    assert invoke(name, *shlex.split(command.example)).exit_code == 0
    ((program, (_, flag, runner, module, *rest), _),) = started
    assert (program, flag, runner) == (sys.executable, "-m", "saw.command")
    assert importlib.util.find_spec(module)
    assert rest == shlex.split(command.example)[1 if command.choices else 0 :]


@pytest.mark.parametrize("given", [[], ["table3"], ["--dry-run"]])
def test_a_part_that_is_none_is_refused_with_those_that_are(given, started):
    result = invoke("reproduce", *given)
    assert result.exit_code == 2
    assert "table1 or table2" in result.output
    assert "saw reproduce table1 " in " ".join(result.output.split())
    assert not started


def test_options_of_hydra_and_values_with_spaces_pass_through(started):
    arguments = ["+saw.note=two words", "--cfg", "job", "--multirun", "-h"]
    invoke("train", *arguments)
    assert started[0][1][4:] == arguments


@pytest.mark.parametrize("name", ["doctor", "sweep", "train"])
def test_a_checkout_s_recipes_are_found_from_any_folder(name, started, monkeypatch):
    """Kind: a command finds the recipes only if it is started in the checkout. The user's own path is kept."""
    for path, expected in (("/own", f"/own{os.pathsep}{ROOT}"), ("", str(ROOT))):
        monkeypatch.setenv("PYTHONPATH", path)
        invoke(name)
        assert started.pop()[2]["PYTHONPATH"] == expected
        assert os.environ["PYTHONPATH"] == path


@pytest.mark.parametrize(("command", "package"), [("quickstart", "recipes"), ("train", "saw"), ("report", "saw")])
def test_a_folder_with_a_package_of_the_same_name_is_refused(command, package, started, tmp_path, monkeypatch):
    """Kind: code of the current folder, perhaps another checkout's, runs instead of this one's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / package).mkdir()
    invoke(command)
    assert len(started) == 1  # a folder that is no package hides nothing
    (tmp_path / package / "__init__.py").touch()
    result = invoke(command)
    assert result.exit_code == 2
    assert f"package {package!r} of its own" in result.output
    assert len(started) == 1
    monkeypatch.chdir(ROOT)
    invoke(command)
    assert len(started) == 2


#: Each command, with the first argument of each of its parts.
EVERY_COMMAND = [
    (name, *part) for name, command in cli.COMMANDS.items() for part in [(part,) for part, _ in command.choices] or [()]
]


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_another_verl_is_one_message(words, started, monkeypatch):
    """Kind: a traceback of WrongVersion, which any command can raise when it imports verl."""
    assert invoke(*words, "--option").exit_code == 0
    ((_, (_, _, runner, *rest), _),) = started
    runner = importlib.import_module(runner)

    def import_verl(module, **_):
        raise WrongVersion(f"{module} {sys.argv[1]}")

    monkeypatch.setattr(runner.runpy, "run_module", import_verl)
    monkeypatch.setattr(sys, "argv", [runner.__file__, *rest])
    with pytest.raises(SystemExit, match=rf"^saw: {rest[0]} --option$") as ended:
        runner.run()
    assert ended.value.__suppress_context__


def test_another_failed_import_is_shown_with_its_place(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["saw/command.py", "saw.absent"])
    with pytest.raises(ImportError, match=r"saw\.absent"):
        command.run()


#: As verl loads the plug-in, whose error it swallows.
SWALLOWED = """
from contextlib import suppress
from importlib.metadata import EntryPoint
with suppress(ImportError):
    EntryPoint("saw", "saw.verl", "verl.plugins").load()
"""


@pytest.mark.slow
@pytest.mark.parametrize("loads", ["import saw.verl\n", SWALLOWED], ids=["by import", "as an entry point"])
def test_a_command_with_another_verl_shows_no_traceback(tmp_path, loads):
    """In the real process, with the first command of which this was seen."""
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").write_text(f"__version__ = '0.8.0'\n{loads}")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    started = [sys.executable, "-m", "saw", "memory", "--gpus", "1"]
    ended = subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("saw: the SAW plug-in needs verl 0.9.0 or 0.9.1, but verl 0.8.0 is")
    assert ended.stderr.count("but verl 0.8.0 is installed") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_it_works_from_any_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "saw", "sweep", "--method", "nothing", "--seeds", "1"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "saw_gdpo" in found.stderr


def test_an_installed_package_says_that_a_recipe_needs_the_repository(tmp_path, monkeypatch, started):
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    result = invoke("quickstart")
    assert result.exit_code == 2
    assert "needs the repository" in result.output
    assert not started
