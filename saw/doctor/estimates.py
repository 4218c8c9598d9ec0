"""The GPU memory and disk space that an experiment takes, as estimated by saw.memory."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def shape_of(config: DictConfig) -> Any:
    """The sizes of the experiment's model, :class:`saw.memory.Shape`."""
    from saw.memory import shape_of

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


def checkpoint_bytes(config: DictConfig) -> float:
    """Bytes of the checkpoints that a training keeps, and of the merged model; 0 if it saves none."""
    from saw.machine.disk import training_bytes

    if config.trainer.save_freq <= 0:
        return 0.0
    kept = config.trainer.max_actor_ckpt_to_keep
    if kept is None:
        return training_bytes(shape_of(config).parameters, checkpoints_of(config))
    return training_bytes(shape_of(config).parameters, kept)


def checkpoints_of(config: DictConfig) -> int:
    """Number of checkpoints if all are kept; 1 if the number of steps is unknown."""
    steps = config.trainer.total_training_steps
    return 1 if steps is None else max(1, -(-steps // config.trainer.save_freq))
