"""Checks what weightings, measures and aggregations return: a wrong result would not stop a training by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saw.method.options import Options
from saw.method.reward_batch import RewardBatch
from saw.method.smoothing import refuse_smoothing

#: Largest rounding error of a sum of weights, which may have been computed in float32.
ROUNDING = 1e-4


def check_weights(weights: Any, like: Tensor, groups: int, options: Options, method: str) -> Tensor:
    """Check what a weighting returned.

    Args:
        weights: what it returned.
        like (Tensor): shape ``(K,)``, of the dtype and on the device that the weights get.
        groups (int): number of groups.
        options (Options): the user's options.
        method (str): the method's name, with the measure if it has one, for messages.

    Returns:
        Tensor: shape ``(K,)`` or ``(G, K)``; the latter only, with ``options.over="group"``.

    Raises:
        TypeError: for anything but a tensor of real numbers.
        ValueError: for a wrong shape; for weights that are not finite, negative, or do not sum to 1; and for weights
            per group with an option that smooths them.
    """
    who = f"the weighting of {method}"
    k = len(like)
    shapes = [(groups, k)] if options.over == "group" else [(k,), (groups, k)]
    weights = _tensor(weights, like, shapes, who)
    # NaN fails the first comparison, and a sum with NaN the second.
    good = (weights >= -ROUNDING).all(dim=-1) & ((weights.sum(dim=-1) - 1).abs() <= ROUNDING)
    if not good.all():
        row = weights if weights.ndim == 1 else weights[~good][0]
        raise ValueError(f"{who} returned {row.tolist()}; expected weights of at least 0 that sum to 1, in float64")
    if weights.ndim == 2:
        refuse_smoothing(options, f"weights per group, which {method} has")
    return weights.clamp(min=0.0)


def check_measured(values: Any, like: Tensor, groups: int, options: Options) -> Tensor:
    """Check the shape of what a measure returned; arguments as in :func:`check_weights`.

    The values are not checked here, because a weighting may run under ``torch.vmap``; :func:`check_weights` checks the
    weights that are computed from them.

    Returns:
        Tensor: shape ``(K,)``, or ``(G, K)`` with ``options.over="group"``.

    Raises:
        TypeError: for anything but a tensor of real numbers.
        ValueError: for a wrong shape.
    """
    shape = like.shape if options.over == "batch" else (groups, len(like))
    return _tensor(values, like, [shape], f"the measure {options.informativeness!r} over the {options.over}")


def check_memory(memory: Any, names: Collection[str], like: Tensor, what: str) -> dict[str, Tensor]:
    """Check what a weighting remembers, as it returned it or as a caller hands it back.

    Args:
        memory: a mapping from name to K numbers; may be empty.
        names (Collection[str]): what the weighting declared that it remembers.
        like (Tensor): shape ``(K,)``, of the dtype and on the device that the values get.
        what (str): the memory in messages.

    Returns:
        dict[str, Tensor]: shape ``(K,)`` each.

    Raises:
        ValueError: for other names, another number of values, or one that is not finite.
        TypeError: for anything but a mapping.
    """
    if not isinstance(memory, Mapping):
        raise TypeError(f"{what} is {memory!r}; expected a mapping")
    if memory and set(memory) != set(names):
        expected = f"exactly {', '.join(sorted(names))}, or nothing" if names else "nothing"
        raise ValueError(f"{what} has {', '.join(map(str, memory))}; expected {expected}")
    checked = {}
    for name, values in memory.items():
        checked[name] = torch.as_tensor(values, dtype=torch.float64).to(like)
        if checked[name].shape != like.shape or not checked[name].isfinite().all():
            raise ValueError(f"{what}: {name} is {checked[name].tolist()}; expected {len(like)} finite numbers")
    return checked


def check_advantages(advantages: Any, batch: RewardBatch, method: str) -> Tensor:
    """Check what an aggregation returned: shape ``(N,)``, finite; errors as in :func:`check_weights`."""
    who = f"the aggregation of {method}"
    advantages = _tensor(advantages, batch.lengths, [batch.lengths.shape], who)
    if not advantages.isfinite().all():
        j = int((~advantages.isfinite()).nonzero()[0])
        raise ValueError(f"{who} returned {advantages[j].item()} for sample {j}; expected finite advantages")
    return advantages


def _tensor(value: Any, like: Tensor, shapes: Sequence[tuple[int, ...]], who: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{who} returned {value!r}, a {type(value).__name__}; expected a torch.Tensor")
    if value.is_complex():
        raise TypeError(f"{who} returned dtype {value.dtype}; expected real numbers")
    if value.shape not in shapes:
        raise ValueError(
            f"{who} returned shape {tuple(value.shape)}; expected {' or '.join(str(tuple(shape)) for shape in shapes)}"
        )
    return value.to(like)
