"""The package without the checkout: what is in its wheel, and that a training starts from it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from saw.verl.config_checks import check_config
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an installed wheel, built from a copy of the sources because building leaves files behind."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("saw", "configs", "recipes", "data_prep"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_a_wheel_brings_its_data_and_no_package_of_another_name(installed):
    """Kind: a file that only an editable installation finds, or a global package called ``recipes``."""
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"saw", "saw_rl"}
    assert not (installed / "saw" / "configs").is_symlink()
    for folder in ("configs", "rewards/judge/prompts", "report/templates"):
        there = {path.relative_to(installed) for path in (installed / "saw" / folder).rglob("*") if path.is_file()}
        tracked = [path for path in (ROOT / "saw" / folder).resolve().rglob("*") if "__pycache__" not in path.parts]
        base = (ROOT / "saw" / folder).resolve()
        assert there == {Path("saw", folder) / path.relative_to(base) for path in tracked if path.is_file()}
        assert there


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Runs a command that sees only the installed package."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,  # not the checkout, which would be found first
        env={**os.environ, "PYTHONPATH": str(installed), "SAW_PLATFORM": "cpu", "VERL_PLATFORM": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def composed(installed: Path, folder: Path, *command: str):
    """The configuration that a command shows."""
    done = run(installed, folder, *command, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return OmegaConf.create(done.stdout)


def test_a_training_composes_from_a_wheel(installed, tmp_path):
    row = ("experiment=toolrl", "model=qwen2.5-3b", "saw.method=gdpo")
    config = composed(installed, tmp_path, "saw", "train", *row)
    assert config.trainer.experiment_name == "3b_gdpo_seed1"
    assert check_config(config).method == "gdpo"


def test_a_wheel_knows_which_experiments_there_are(installed, tmp_path):
    done = run(installed, tmp_path, "saw", "train")
    assert done.returncode == 1
    assert "quickstart, study, tldr, toolrl" in done.stderr


def test_verls_own_command_finds_the_plug_in_in_a_wheel(installed, tmp_path):
    objectives = "+saw.objectives={right: {minimum: 0}, short: {minimum: 0, priority: 2}}"
    config = composed(installed, tmp_path, "verl.trainer.main_ppo", "+plugin=saw", objectives, "saw.method=saw_grpo")
    selected = (config.trainer.v1.trainer_mode, config.algorithm.adv_estimator, config.reward.reward_manager.name)
    assert selected == ("saw", "saw", "saw")
    assert (config.saw.method, config.saw.objectives.short.priority) == ("saw_grpo", 2)
