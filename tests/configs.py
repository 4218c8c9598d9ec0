"""Compose configurations of the shipped tree."""

import copy
import functools
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = sorted(
    path.relative_to(CONFIGS / "experiment").with_suffix("").as_posix()
    for path in (CONFIGS / "experiment").rglob("*.yaml")
    if path.stem != "base"
)


def compose(*overrides: str) -> DictConfig:
    """The tree's one primary configuration with overrides, on the CPU unless they say otherwise."""
    if not any(override.startswith("platform=") for override in overrides):
        overrides = ("platform=cpu", *overrides)
    return copy.deepcopy(_composed(overrides))


@functools.lru_cache(maxsize=256)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return hydra_compose("train", overrides=list(overrides))
