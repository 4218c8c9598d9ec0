"""A bend: check SAW's configuration where verl checks its own, before Ray starts.

verl 0.9.1 has no hook between Hydra and ``ray.init``; its entry point calls ``verl.utils.config.validate_config``,
imported by name after the plug-ins are loaded. That function is wrapped here, so that ``python -m
verl.trainer.main_ppo`` stops at once on a setting that cannot work. The trainer checks again when it is made.
Contract: ``tests/contract/test_seams.py::test_main_ppo_calls_the_wrapped_validate_config``.
"""

import functools

from omegaconf import DictConfig
from verl.utils import config as verl_config

from saw.verl.settings import check_config

_validate_config = verl_config.validate_config


@functools.wraps(_validate_config)
def validate_config(config: DictConfig, *args, **kwargs) -> None:
    """verl's own checks after SAW's."""
    check_config(config)
    _validate_config(config, *args, **kwargs)


verl_config.validate_config = validate_config
