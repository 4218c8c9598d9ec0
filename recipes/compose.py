"""A configuration of ``configs/``, composed without starting anything."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import hydra
from omegaconf import DictConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def compose(*overrides: str) -> DictConfig:
    """The tree's one primary configuration with overrides, for GPUs unless they say otherwise."""
    os.environ.setdefault("VERL_PLATFORM", "cpu")  # Hydra imports verl to find its part, and verl looks for a platform
    if not any(override.startswith("platform=") for override in overrides):
        overrides = ("platform=gpu", *overrides)
    with warnings.catch_warnings(), hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        warnings.simplefilter("ignore")  # verl's, of engines that are not installed
        return hydra.compose("train", overrides=list(overrides))
