"""The commands of the pages can be typed as they are: the environment that set-up makes is not active in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saw import cli
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/README.md")]
#: What set-up installs into its environment, where no plain command finds it.
INSIDE = ("python", "python3", "pip", "saw", "ray", "hf", "wandb", "pytest", "ruff", "mypy")
#: Commands for an environment or a machine of the reader's own.
OWN = {
    "README.md": {"pip install '.[verl]'", "python -m verl.trainer.main_ppo"},
    "installation.md": {"pip install vllm==0.24.0", "pip install -e '.[all]'"},
    "trl.md": {"pip install '.[trl,report]'", "python examples/trl_cpu.py", "saw report runs/trl"},
    "attention.md": {"pip install --no-build-isolation flash-attn==2.8.3"},
    "gpu_tests.md": {"python -m pytest tests/gpu/test_torch_only.py", "python -m pip install --no-index"},
}


def blocks(page: Path) -> list[str]:
    """The blocks of commands, with each command in one line."""
    found = re.findall(r"^```(?:bash)?\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [block.replace("\\\n", " ") for block in found]


def typed(line: str) -> list[str]:
    """The words of a command, after the variables that are set for it."""
    words = line.split()
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_needs_an_environment_that_is_not_active(page):
    for block in blocks(page):
        is_active = False
        for line in block.splitlines():
            is_active |= line.startswith("source .venv")
            words = typed(line)
            if words and words[0] in INSIDE and not is_active:
                assert any(line.startswith(own) for own in OWN.get(page.name, ())), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_scripts_and_commands_that_are_named_exist(page):
    text = page.read_text()
    for script in re.findall(r"bash\s+(scripts/\S+?\.sh)", text):
        assert (ROOT / script).is_file(), script
    for command in re.findall(r"scripts/run\.sh saw (\w+)", text):
        assert command in cli.COMMANDS


@pytest.mark.slow
def test_the_bare_folder_for_a_gpu_is_complete_beside_another_package_of_that_name(tmp_path):
    """Kind: an installed package called tests, which is found before a folder without __init__.py."""
    (block,) = (block for block in blocks(ROOT / "docs" / "gpu_tests.md") if "bare" in block)
    (tmp_path / "site" / "tests").mkdir(parents=True)
    (tmp_path / "site" / "tests" / "__init__.py").write_text("# another project's\n")
    for folder in ("saw", "benchmarks", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@" -q --collect-only\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    shell = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, env=shell, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_torch_only.py" in done.stdout
    assert (tmp_path / "bare" / "tests" / "gpu").is_dir()
