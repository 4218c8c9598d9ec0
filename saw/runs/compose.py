"""A configuration of ``configs/``, composed without starting anything.

Nothing of this process changes: verl, which looks for a platform when it is imported, is not imported, and no variable
is set that a training started from here would inherit.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import hydra
from omegaconf import DictConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # in a checkout a link to the folder


def compose(*overrides: str) -> DictConfig:
    """The tree's one primary configuration with overrides, for GPUs unless they say otherwise.

    Raises:
        ModuleNotFoundError: if verl, whose configuration the tree builds on, is not installed.
    """
    if not any(override.startswith("platform=") for override in overrides):
        overrides = ("platform=gpu", *overrides)
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        return hydra.compose("train", overrides=[f"hydra.searchpath=[file://{_verls_configs()}]", *overrides])


def _verls_configs() -> Path:
    """The folder behind configs/train.yaml's ``pkg://verl.trainer.config``, for which Hydra would import verl."""
    verl = importlib.util.find_spec("verl")  # a look at the path, which runs nothing of a top-level package
    if verl is None or not verl.submodule_search_locations:
        raise ModuleNotFoundError("verl is not installed here; bash scripts/setup.sh installs it", name="verl")
    return Path(verl.submodule_search_locations[0]) / "trainer" / "config"
