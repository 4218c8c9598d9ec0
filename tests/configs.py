"""Compose configurations of the shipped tree."""

import functools
import io
import pickle
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: What the names of Hydra's sources begin with, if nothing changes them while tests run.
SHIPPED = ("pkg://", "structured://", f"file://{CONFIGS.parent}", f"file://{sysconfig.get_path('purelib')}")
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


#: An override of a value, which Hydra applies last. Its key has a dot; a group's has slashes, and @ before a package.
OF_A_VALUE = re.compile(r"[+~]{0,2}(?!hydra\.)[^.=@/]+\.[^=@/]+(=|$)")


def compose(*overrides: str) -> DictConfig:
    """The tree's one primary configuration with overrides, on the CPU unless they say otherwise.

    Hydra needs 0.3 s to read some sixty files, so what the groups give is kept, and values are set in a copy of it.
    """
    if not any(override.startswith("platform=") for override in overrides):
        overrides = ("platform=cpu", *overrides)
    values = [override for override in overrides if OF_A_VALUE.match(override)]
    config = pickle.loads(_composed(tuple(override for override in overrides if override not in values)))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
    return config


def composed_with(overrides: tuple[str, ...], changes: Mapping[str, Any] | None = None) -> DictConfig:
    """Compose, and make changes afterwards, of any type and of keys that do not exist yet."""
    config = compose(*overrides)
    for key, value in (changes or {}).items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def keep_parsed_files() -> None:
    """From now on, OmegaConf parses a text once in this process; a third of the time of a composition."""
    load = OmegaConf.load

    @functools.cache
    def parsed(text: str | bytes) -> bytes:
        return pickle.dumps(load(io.StringIO(text) if isinstance(text, str) else io.BytesIO(text)))

    @functools.wraps(load)
    def load_kept(file: Any) -> Any:
        return pickle.loads(parsed(file.read())) if hasattr(file, "read") else load(file)

    OmegaConf.load = staticmethod(load_kept)


def keep_merged_files() -> None:
    """From now on, Hydra merges the same shipped files once in this process; half of the time of a composition."""
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    kept: dict[tuple[str, ...], bytes] = {}

    @functools.wraps(merge)
    def merge_kept(self: Any, defaults: list[Any], repo: Any) -> DictConfig:
        sources = [source.full_path() for source in repo.get_sources()]
        if not all(source.startswith(SHIPPED) for source in sources):  # a test's own files may change
            return merge(self, defaults, repo)
        key = (*sources, repr(defaults))
        if key not in kept:
            kept[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(kept[key])

    ConfigLoaderImpl._compose_config_from_defaults_list = merge_kept


@functools.lru_cache(maxsize=256)
def _composed(overrides: tuple[str, ...]) -> bytes:
    """Pickled, which gives copies in a fifth of the time of ``copy.deepcopy``."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return pickle.dumps(hydra_compose("train", overrides=list(overrides)))
