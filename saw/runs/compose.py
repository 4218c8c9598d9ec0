"""Composes a configuration of ``configs/`` without starting anything.

It has no side effects: verl, which detects a platform when it is imported, is not imported, and no variable is set that
a training started from here would inherit.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # in a checkout, a link to the folder


class NotComposed(ValueError):
    """There is no such configuration, or it has no such setting; the message is Hydra's."""


def compose(*overrides: str, config_name: str = "train", config_dir: Path | None = None) -> DictConfig:
    """The primary configuration with overrides, for GPUs unless they set another platform.

    Args:
        overrides (str): Hydra's.
        config_name (str): of the primary configuration, as ``--config-name``.
        config_dir (Path | None): a further folder of configurations, as ``--config-dir``.

    Raises:
        NotComposed: naming the override, or the file.
        ModuleNotFoundError: if verl, whose configuration the tree builds on, is not installed.
    """
    if not any(override.startswith("platform=") for override in overrides):
        overrides = ("platform=gpu", *overrides)
    folders = [_verls_configs(), *([config_dir.absolute()] if config_dir else [])]
    path = ",".join(f"'file://{folder}'" for folder in folders)
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        try:
            return hydra.compose(config_name, overrides=[f"hydra.searchpath=[{path}]", *overrides])
        except HydraException as fault:
            raise NotComposed(str(fault)) from fault


def parse_override(override: str) -> Override:
    """Parse an override with Hydra's parser.

    Raises:
        argparse.ArgumentTypeError: if it is not an override, or has several values, which only Hydra's sweeps accept.
    """
    try:
        found = OverridesParser.create().parse_override(override)
    except HydraException as fault:
        raise argparse.ArgumentTypeError(
            f"{override!r} is not a Hydra override; expected KEY=VALUE ({fault})"
        ) from None
    if found.is_sweep_override():
        raise argparse.ArgumentTypeError(f"{override!r} has several values; expected one, or a list in [brackets]")
    return found


def checked_override(text: str) -> str:
    """A valid Hydra override, unchanged; usable as the ``type`` of an argparse argument."""
    parse_override(text)
    return text


def keys_of(key: str, value: Any) -> Iterator[str]:
    """The keys that an override sets; ``data={seed: 1}`` sets ``data`` and ``data.seed``."""
    yield key
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from keys_of(f"{key}.{name}", inner)


def _verls_configs() -> Path:
    """The folder behind configs/train.yaml's ``pkg://verl.trainer.config``, for which Hydra would import verl."""
    verl = importlib.util.find_spec("verl")  # finds a top-level package without running its code
    if verl is None or not verl.submodule_search_locations:
        raise ModuleNotFoundError("verl is not installed here; bash scripts/setup.sh installs it", name="verl")
    return Path(verl.submodule_search_locations[0]) / "trainer" / "config"
