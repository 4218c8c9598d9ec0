"""Checks of the arguments of :func:`saw.compute_advantage`, and the batch that is built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from saw.method.conditions import check_conditions, condition
from saw.method.groups import Groups, number_groups
from saw.method.objective import LARGEST, Objective
from saw.method.reward_batch import RewardBatch, extremes


def make_batch(
    rewards: Tensor,
    groups: Groups,
    lengths: Tensor,
    objectives: Sequence[Objective],
    *,
    penalty: Tensor | None = None,
    ddof: int = 1,
) -> RewardBatch:
    """Check the values given to :func:`saw.compute_advantage` and put them into one object.

    Args:
        rewards (Tensor): shape ``(N, K)``, NaN where missing; its shape has been checked.
        groups (Groups): N ids.
        lengths (Tensor): shape ``(N,)``; everything is computed on its device.
        objectives (Sequence[Objective]): K of them.
        penalty (Tensor | None): shape ``(N,)``.
        ddof (int): of the variances, see :class:`~saw.method.profiles.Profile`.

    Raises:
        ValueError: for no rewards, an infinite value, a reward below its minimum, a penalty that is not finite, a group
            id that is NaN, or ids that mix numbers and text; the message names the sample and the value.
        TypeError: if a group id is not hashable.
    """
    n = len(rewards)
    device = lengths.device
    raw = rewards.detach().to(device)
    values, missing, smallest, largest = _check_rewards(raw, objectives)
    if (conditional := condition(raw, objectives)) is not raw:
        values, missing, smallest, largest = _check_rewards(conditional, objectives)
    low, high = zip(*(objective.range for objective in objectives), strict=True)
    priorities = [float(objective.priority) for objective in objectives]
    minima, maxima, factors = torch.tensor([low, high, priorities], dtype=torch.float64).to(device)
    return RewardBatch(
        rewards=values,
        missing=missing,
        groups=number_groups(groups, n, device),
        smallest=smallest,
        largest=largest,
        minima=minima,
        maxima=maxima,
        priorities=factors,
        penalty=None if penalty is None else _check_penalty(penalty.detach().to(device).double(), n),
        lengths=lengths.double(),
        ddof=ddof,
    )


def check_objectives(objectives: Sequence[Objective] | None, k: int) -> tuple[Objective, ...]:
    """One objective per column of the rewards; None gives ``objective 0``, ``objective 1`` and so on.

    Raises:
        ValueError: for a wrong number of objectives, a duplicate name, or a condition that cannot be met or missed.
        TypeError: for anything but :class:`saw.Objective`.
    """
    if objectives is None:
        return _unnamed(k)
    if isinstance(objectives, Objective):
        raise TypeError(f"objectives is {objectives!r}; expected a sequence of them, one per column of rewards")
    objectives = tuple(objectives)
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(f"objectives has {objective!r}; expected saw.Objective(name, minimum, maximum, priority)")
    names = [objective.name for objective in objectives]
    if len(names) != k:
        raise ValueError(f"objectives has {len(names)} entries {names}; expected {k}, one per column of rewards")
    if len(set(names)) != k:
        raise ValueError(f"objectives {names} has a duplicate; expected unique names")
    requires = {objective.name: objective.requires for objective in objectives}
    check_conditions(requires, {objective.name: objective.range for objective in objectives})
    return objectives


@lru_cache(maxsize=8)
def _unnamed(k: int) -> tuple[Objective, ...]:
    return tuple(Objective(f"objective {i}") for i in range(k))


def check_shapes(rewards: Tensor, responses: Tensor) -> None:
    """Check that rewards are ``(N, K)`` and the responses ``(N, T)`` or ``(N,)``, both tensors.

    Raises:
        ValueError: for a wrong shape.
        TypeError: for anything but a tensor of real numbers.
    """
    for name, value, dimensions in (("rewards", rewards, (2,)), ("responses", responses, (1, 2))):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
        if value.ndim not in dimensions:
            expected = " or ".join(map(str, dimensions))
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected} dimensions")
        if value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}; expected real numbers")
    if rewards.numel() == 0:
        raise ValueError(f"no rewards: shape {tuple(rewards.shape)}; expected (N, K) with N and K at least 1")
    if len(responses) != len(rewards):
        raise ValueError(f"responses has {len(responses)} rows and rewards {len(rewards)}; expected one per sample")


def check_lengths(lengths: Tensor) -> Tensor:
    """Response lengths, shape ``(N,)``, as float64.

    Raises:
        ValueError: for a length that is negative or not an integer; the message names the sample and the value.
    """
    counts = lengths.detach().double()
    bad = ~((counts >= 0) & (counts == counts.floor()) & counts.isfinite())
    if bad.any():
        j = int(bad.nonzero()[0])
        raise ValueError(f"responses is {lengths[j].item()} for sample {j}; expected its number of tokens")
    return counts


def token_mask(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A floating-point copy of the mask, and the number of response tokens of each sample.

    The check takes few passes over ``(N, T)`` and no further tensor of that size: these passes are most of the time of
    computing an advantage.

    Args:
        mask (Tensor): shape ``(N, T)``; every value is 0 or 1, or a bool.
        dtype (torch.dtype): floating-point type of the copy.

    Returns:
        tuple[Tensor, Tensor]: shapes ``(N, T)`` and ``(N,)``.

    Raises:
        ValueError: for any other value; the message names the sample, the token and the value.
    """
    tokens = mask.detach().to(dtype, copy=True)
    lengths = tokens.sum(dim=-1)
    if mask.dtype == torch.bool or tokens.numel() == 0:
        return tokens, lengths
    low, high = torch.stack(torch.aminmax(tokens)).tolist()
    good = low >= 0 and high <= 1  # a NaN is neither
    if good and mask.is_floating_point():
        # Values from 0 to 1 sum to the number of non-zero values only if all of those are 1.
        good = torch.equal(torch.linalg.vector_norm(tokens, ord=0, dim=-1), lengths)
    if not good:
        j, t = ((tokens != 0) & (tokens != 1)).nonzero()[0].tolist()
        value = mask[j, t].item()
        raise ValueError(f"responses is {value} for token {t} of sample {j}; expected 1 on the response, 0 elsewhere")
    return tokens, lengths


def _check_rewards(raw: Tensor, objectives: Sequence[Objective]) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The rewards in float64 with 0 where missing, the mask of missing ones, and each objective's extremes."""
    values, missing = raw.double(), None
    low, high = extremes(values, None)
    lows, highs = torch.stack((low, high)).tolist()
    if any(map(math.isnan, lows)):  # the minimum is NaN if any value is
        missing = values.isnan()
        if missing.all():
            raise ValueError(f"no rewards: all {values.numel()} values are missing (NaN)")
        values = values.masked_fill(missing, 0.0)
        low, high = extremes(values, missing)
        lows, highs = torch.stack((low, high)).tolist()
    for k, objective in enumerate(objectives):
        if lows[k] < -LARGEST or highs[k] > LARGEST:
            j = int((values[:, k].abs() > LARGEST).nonzero()[0])
            raise ValueError(
                f"the reward of {objective.name!r} is {values[j, k].item()} for sample {j}; "
                f"expected a finite number, at most {LARGEST:g} in size"
            )
        # Compared in the precision of the rewards: -0.1 in float32 is below -0.1 in float64.
        if objective.minimum is not None and lows[k] < objective.minimum:
            below = raw[:, k] < objective.minimum
            if below.any():
                j = int(below.nonzero()[0])
                raise ValueError(
                    f"the reward of {objective.name!r} is {raw[j, k].item():g} for sample {j}, "
                    f"below its minimum {objective.minimum:g}"
                )
    return values, missing, low, high


def _check_penalty(penalty: Tensor, n: int) -> Tensor:
    if penalty.shape != (n,):
        raise ValueError(f"penalty has shape {tuple(penalty.shape)}; expected ({n},), one value per sample")
    bad = ~(penalty.abs() <= LARGEST)  # a NaN is not
    if bad.any():
        j = int(bad.nonzero()[0])
        raise ValueError(
            f"penalty is {penalty[j].item()} for sample {j}; expected a finite number, at most {LARGEST:g} in size"
        )
    return penalty
