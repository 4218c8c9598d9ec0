"""The GPU memory that an experiment takes, as estimated by saw.memory."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def shape_of(config: DictConfig) -> Any:
    """The sizes of the experiment's model, :class:`saw.machine.shape.Shape`."""
    from saw.machine.shape import shape_of

    return shape_of(config.actor_rollout_ref.model.path)


def fit(config: DictConfig, gpu_bytes: float) -> tuple[float, list[str]]:
    """The peak of a training in bytes per GPU, and what does not fit.

    Args:
        config (DictConfig): the experiment.
        gpu_bytes (float): what a program can use of a GPU.

    Raises:
        ValueError: for an experiment that the estimate does not cover.
    """
    from saw.memory import estimate, fits

    config = with_attention(config)
    found = estimate(config, shape_of(config), config.trainer.nnodes * config.trainer.n_gpus_per_node)
    return found.peak(gpu_bytes).total(gpu_bytes, found.settings.share), fits(found, gpu_bytes)


def with_attention(config: DictConfig) -> DictConfig:
    """A copy with the attention that the start will choose, which also sets how the logits are computed."""
    from saw.verl.attention import apply, choose

    config = copy.deepcopy(config)
    if (choice := choose(config)) is not None:
        apply(config, choice)
    return config
