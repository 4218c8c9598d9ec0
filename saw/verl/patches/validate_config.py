"""A patch of verl 0.9.1: checks SAW's configuration where verl checks its own, before Ray starts.

verl has no hook between Hydra and ``ray.init``; its entry point calls ``verl.utils.config.validate_config``, imported
by name. That function is wrapped, so that ``python -m verl.trainer.main_ppo`` stops at once on a setting that cannot
work. The trainer checks again when it is created. A training that doesn't use SAW is not affected.
Contract: ``tests/contract/test_seams.py::test_main_ppo_calls_the_wrapped_validate_config``.
"""

import functools
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from omegaconf import DictConfig

from saw.verl.names import ACTIVE, MODES, NAME


def wrap(module: ModuleType) -> None:
    """Put SAW's check before verl's own, in verl's module."""
    stock = module.validate_config  # type: ignore[attr-defined]

    @functools.wraps(stock)
    def validate_config(config: DictConfig, *args, **kwargs) -> None:
        """verl's own checks, between SAW's."""
        if config.trainer.v1.trainer_mode not in MODES and config.algorithm.adv_estimator != NAME:
            stock(config, *args, **kwargs)
            return
        from saw.verl.config_checks import check_config, check_micro_batches

        check_config(config)
        with _as_config_errors():
            stock(config, *args, **kwargs)
        check_micro_batches(config)
        os.environ[ACTIVE] = "1"  # Ray's processes inherit it

    module.validate_config = validate_config  # type: ignore[attr-defined]


@contextmanager
def _as_config_errors() -> Iterator[None]:
    """Name what verl stopped at: a null where it compares numbers is a TypeError that names no key."""
    from hydra.errors import InstantiationException

    from saw.verl.config import ConfigError

    try:
        yield
    except ConfigError:
        raise
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"verl's check of the configuration: {error}") from error
    except (TypeError, AttributeError, InstantiationException) as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        where = "" if isinstance(error, InstantiationException) else f" at {line!r}"
        raise ConfigError(
            f"verl's check of the configuration fails{where}: {' '.join(str(error).split())}; a value there is null or "
            "of another type than verl expects"
        ) from error
