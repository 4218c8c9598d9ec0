"""Checks of what :func:`saw.compute_advantage` is given, and its bookkeeping."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import count
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saw.method.objective import LARGEST, Objective
from saw.method.reward_batch import RewardBatch, extremes

Groups = Sequence[Hashable] | Iterable[Hashable] | Tensor


def make_batch(
    rewards: Tensor,
    groups: Groups,
    lengths: Tensor,
    objectives: Sequence[Objective],
    *,
    penalty: Tensor | None = None,
) -> RewardBatch:
    """Check the values given to :func:`saw.compute_advantage` and put them into one object.

    Args:
        rewards (Tensor): shape ``(N, K)``, NaN where missing; its shape has been checked.
        groups (Groups): N ids.
        lengths (Tensor): shape ``(N,)``, on the device where the work is done.
        objectives (Sequence[Objective]): K of them.
        penalty (Tensor | None): shape ``(N,)``.

    Raises:
        ValueError: for no rewards, an infinite value, a reward below its minimum, a penalty that is not finite, a group
            id that is NaN or looks like another; the message names the place and the value.
        TypeError: if a group id is not hashable.
    """
    n = len(rewards)
    device = lengths.device
    raw = rewards.detach().to(device)
    values, missing, smallest, largest = _check_rewards(raw, objectives)
    group, n_groups = group_index(groups, n)
    low, high = zip(*(objective.range for objective in objectives), strict=True)
    priorities = [float(objective.priority) for objective in objectives]
    minima, maxima, factors = torch.tensor([low, high, priorities], dtype=torch.float64).to(device)
    return RewardBatch(
        rewards=values,
        missing=missing,
        group=group.to(device),
        n_groups=n_groups,
        smallest=smallest,
        largest=largest,
        minima=minima,
        maxima=maxima,
        priorities=factors,
        penalty=None if penalty is None else _check_penalty(penalty.detach().to(device).double(), n),
        lengths=lengths.double(),
    )


def check_objectives(objectives: Sequence[Objective] | None, k: int) -> tuple[Objective, ...]:
    """One objective for each column of the rewards; named by their number if there are none.

    Raises:
        ValueError: for another number of them, or a name that is there twice.
        TypeError: for anything but :class:`saw.Objective`.
    """
    if objectives is None:
        return tuple(Objective(f"objective {i}") for i in range(k))
    objectives = tuple(objectives)
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(f"objectives has {objective!r}; expected saw.Objective(name, minimum, maximum, priority)")
    names = [objective.name for objective in objectives]
    if len(names) != k:
        raise ValueError(f"objectives has {len(names)} entries {names}; expected {k}, one for each column of rewards")
    if len(set(names)) != k:
        raise ValueError(f"objectives {names} has a duplicate; expected a name of its own for each")
    return objectives


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
        ValueError: for a negative number, or one that is not whole; the message names the sample and the value.
    """
    counts = lengths.detach().double()
    bad = ~((counts >= 0) & (counts == counts.floor()) & counts.isfinite())
    if bad.any():
        j = int(bad.nonzero()[0])
        raise ValueError(f"responses is {lengths[j].item()} for sample {j}; expected the number of its tokens")
    return counts


def token_mask(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A copy of the mask as numbers, and how many response tokens each sample has.

    Checked in few passes over ``(N, T)`` and without a further tensor of that size, as they are most of the time that
    an advantage takes.

    Args:
        mask (Tensor): shape ``(N, T)``; every value is 0 or 1, or a bool.
        dtype (torch.dtype): of the result, a floating-point type.

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
        # Values from 0 to 1 add up to the number of those that are not 0 only if these are all 1.
        good = torch.equal(torch.linalg.vector_norm(tokens, ord=0, dim=-1), lengths)
    if not good:
        j, t = ((tokens != 0) & (tokens != 1)).nonzero()[0].tolist()
        value = mask[j, t].item()
        raise ValueError(f"responses is {value} for token {t} of sample {j}; expected 1 on the response, else 0")
    return tokens, lengths


def _check_rewards(raw: Tensor, objectives: Sequence[Objective]) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The rewards in float64 with 0 where they are missing, where that is, and each objective's extremes."""
    values, missing = raw.double(), None
    low, high = extremes(values, None)
    lows, highs = torch.stack((low, high)).tolist()
    if any(map(math.isnan, lows)):  # so it is if any value is
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
        # Compared in the rewards' own precision: float32 of -0.1 lies below the double -0.1.
        if objective.minimum is not None and lows[k] < objective.minimum:
            below = raw[:, k] < objective.minimum
            if below.any():
                j = int(below.nonzero()[0])
                raise ValueError(
                    f"the reward of {objective.name!r} is {raw[j, k].item():g} for sample {j}, "
                    f"below its stated minimum {objective.minimum:g}"
                )
    return values, missing, low, high


def _check_penalty(penalty: Tensor, n: int) -> Tensor:
    if penalty.shape != (n,):
        raise ValueError(f"penalty has shape {tuple(penalty.shape)}; expected ({n},), one value a sample")
    bad = ~(penalty.abs() <= LARGEST)  # a NaN is not
    if bad.any():
        j = int(bad.nonzero()[0])
        raise ValueError(
            f"penalty is {penalty[j].item()} for sample {j}; expected a finite number, at most {LARGEST:g} in size"
        )
    return penalty


def group_index(groups: Groups, n: int) -> tuple[Tensor, int]:
    """Number the groups in the order of their first sample.

    Ids that are equal are one group: 1, 1.0, ``np.int64(1)`` and ``torch.tensor(1)`` are.

    Args:
        groups: n ids.
        n (int): how many samples there are.

    Returns:
        tuple[Tensor, int]: each sample's group, shape ``(n,)``, int64, on the CPU; and how many groups there are.

    Raises:
        ValueError: for another number of ids, an id that is NaN, numbers and text together.
        TypeError: for an id that is not hashable.
    """
    shape = getattr(groups, "shape", (n,))
    if len(shape) != 1:
        raise ValueError(f"groups has shape {tuple(shape)}; expected ({n},), one id a sample")
    if hasattr(groups, "tolist"):  # tensors and numpy arrays: their elements are hashable only as Python objects
        groups = groups.tolist()
    ids = list(groups)
    if len(ids) != n:
        raise ValueError(f"groups has {len(ids)} ids and rewards {n} rows; expected one id a sample")
    try:
        index, distinct = _number(ids)
        plain = set(map(type, distinct)) in ({str}, {int})
    except TypeError:
        plain = False
    if not plain:  # only then: a loop over the samples takes its time
        ids = [_plain_id(value, f"groups[{position}]") for position, value in enumerate(ids)]
        _check_kinds(ids)
        index, distinct = _number(ids)
    return torch.from_numpy(index), len(distinct)


def _number(ids: list[Hashable]) -> tuple[np.ndarray, dict[Hashable, int]]:
    """Each id's number, and the numbers of the distinct ids."""
    numbers: defaultdict[Hashable, int] = defaultdict(count().__next__)
    return np.fromiter(map(numbers.__getitem__, ids), dtype=np.int64, count=len(ids)), numbers


def _plain_id(value: Any, where: str) -> Hashable:
    """An id as it is, or the value of a tensor without dimensions, as tensors hash by their identity."""
    if isinstance(value, tuple):
        return tuple(_plain_id(part, where) for part in value)
    is_array = isinstance(value, Tensor | np.ndarray)
    if is_array and value.ndim == 0:
        value, is_array = value.item(), False
    try:
        if is_array:
            raise TypeError(f"shape {tuple(value.shape)}")
        hash(value)
        is_itself = bool(value == value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{where} is {value!r}, a {type(value).__name__}, not hashable or not comparable ({error}); "
            "expected a number, a text or a tuple of them"
        ) from error
    if not is_itself:
        raise ValueError(f"{where} is {value!r}, which does not equal itself; expected an id that samples can share")
    return value


def _check_kinds(ids: list[Hashable]) -> None:
    """Refuse ``1`` beside ``"1"``: they are not equal, and it is hardly meant that they are two prompts."""
    first: dict[type, int] = {}
    for position, value in enumerate(ids):
        for kind in (Number, str, bytes):
            if isinstance(value, kind):
                first.setdefault(kind, position)
    if len(first) > 1:
        i, j = list(first.values())[:2]
        raise ValueError(
            f"groups[{i}] is {ids[i]!r} and groups[{j}] is {ids[j]!r}, which are never equal; expected ids of one kind"
        )
