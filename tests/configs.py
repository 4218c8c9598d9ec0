"""Compose configurations of the shipped tree."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def compose(*overrides: str) -> DictConfig:
    """The tree's one primary configuration with overrides, on the CPU unless they say otherwise."""
    if not any(override.startswith("platform=") for override in overrides):
        overrides = ("platform=cpu", *overrides)
    return copy.deepcopy(_composed(overrides))


def composed_with(overrides: tuple[str, ...], changes: Mapping[str, Any] | None = None) -> DictConfig:
    """Compose, which takes long, and make changes afterwards, for tests of many values of one experiment."""
    config = compose(*overrides)
    for key, value in (changes or {}).items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


@functools.lru_cache(maxsize=256)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return hydra_compose("train", overrides=list(overrides))
