"""Options that smooth the weights from step to step. All are off by default."""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.options import Options

#: The options that :func:`smooth` applies, besides ``log_only``.
SMOOTHING = ("ema", "floor", "max_change")


def refuse_smoothing(options: Options, why: str) -> None:
    """Refuse the options that :func:`smooth` applies, which are for weights of the whole batch.

    Raises:
        ValueError: naming the option and its value.
    """
    for option in (*SMOOTHING, "log_only"):
        if value := getattr(options, option):
            raise ValueError(f"options.{option} is {value}; not allowed with {why}")


def smooth(proposed: Tensor, previous: Tensor | None, options: Options) -> Tensor:
    r"""Smooth the weights that a method proposes.

    In this order: an exponential moving average, :math:`e\,w_{t-1} + (1-e)\,\hat w_t`; a floor, above which the
    remaining weight is shared in proportion; and a limit on the change, which scales down all changes alike. Each keeps
    the sum at 1, and the limit keeps the floor.

    Args:
        proposed (Tensor): shape ``(K,)``, this step's weights before smoothing.
        previous (Tensor | None): shape ``(K,)``, the weights used in the previous step; None at the first step.
        options (Options): ``ema``, ``floor``, ``max_change``, ``log_only``.

    Returns:
        Tensor: shape ``(K,)``.
    """
    if options.log_only:
        return torch.full_like(proposed, 1.0 / len(proposed))
    weights = proposed
    if previous is not None and options.ema:
        weights = options.ema * previous + (1.0 - options.ema) * weights
    if options.floor:
        above = (weights - options.floor).clamp(min=0.0)
        rest = 1.0 - len(weights) * options.floor
        total = above.sum()
        share = torch.where(total > 0, above / total.clamp(min=1e-300), 1.0 / len(above))
        weights = options.floor + rest * share
    if previous is not None and options.max_change is not None:
        change = weights - previous
        largest = change.abs().max()
        weights = previous + change * (options.max_change / largest.clamp(min=1e-300)).clamp(max=1.0)
    return weights
