"""One step's rewards, checked, with the bookkeeping of groups and missing values done once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: The largest size of a reward, a penalty or a priority: sums of squares of their products stay finite.
LARGEST = 1e70

Groups = Sequence[Hashable] | Iterable[Hashable] | Tensor


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of all samples of a step.

    Attributes:
        rewards (Tensor): shape ``(N, K)``, float64; 0 where missing, so that sums need no special case.
        missing (Tensor | None): shape ``(N, K)``, bool; True where the reward is missing. None if none is: the common
            case, in which nothing has to be filled or counted.
        group (Tensor): shape ``(N,)``, int64 in ``[0, n_groups)``.
        n_groups (int): how many groups there are.
        names (tuple[str, ...]): K names, for messages.
        minima (Tensor | None): shape ``(K,)``, float64, the theoretical minimum of each objective.
        maxima (Tensor | None): shape ``(K,)``, float64, the theoretical maximum of each objective.
        priorities (Tensor): shape ``(K,)``, float64, the user's static weight of each objective.
        penalty (Tensor | None): shape ``(N,)``, float64, taken off the combined reward (an in-reward KL penalty).
        lengths (Tensor): shape ``(N,)``, float64, response tokens of each sample.
    """

    rewards: Tensor
    missing: Tensor | None
    group: Tensor
    n_groups: int
    names: tuple[str, ...]
    minima: Tensor | None
    maxima: Tensor | None
    priorities: Tensor
    penalty: Tensor | None
    lengths: Tensor

    def present_only(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """``values``, shape ``(N, K)``, with ``fill`` where the reward is missing."""
        return values if self.missing is None else values.masked_fill(self.missing, fill)

    def rated_only(self, values: Tensor) -> Tensor:
        """``values``, shape ``(N,)``, with 0 for the samples that have no reward at all."""
        return values if self.missing is None else values.masked_fill(self.missing.all(dim=1), 0.0)

    def group_sum(self, values: Tensor) -> Tensor:
        """Sum ``values``, shape ``(N,)`` or ``(N, K)``, over each group: shape ``(n_groups, ...)``, same dtype."""
        return values.new_zeros(self.n_groups, *values.shape[1:]).index_add_(0, self.group, values)

    def of_group(self, values: Tensor) -> Tensor:
        """For each sample the value of its group: ``(n_groups, ...)`` to ``(N, ...)``."""
        return values.index_select(0, self.group)

    @cached_property
    def count(self) -> Tensor:
        """Present rewards of each objective: shape ``(K,)``, float64."""
        return self.group_count.sum(dim=0)

    @cached_property
    def smallest(self) -> Tensor:
        """Smallest present reward of each objective: shape ``(K,)``; NaN where there is none."""
        if self.missing is None:
            return self.group_min.min(dim=0).values  # over the first dimension faster than amin
        return self.present_only(self.rewards, torch.inf).amin(dim=0).masked_fill(self.missing.all(dim=0), torch.nan)

    @cached_property
    def largest(self) -> Tensor:
        """Largest present reward of each objective: shape ``(K,)``; NaN where there is none."""
        if self.missing is None:
            return self.rewards.max(dim=0).values
        return self.present_only(self.rewards, -torch.inf).amax(dim=0).masked_fill(self.missing.all(dim=0), torch.nan)

    @cached_property
    def group_size(self) -> Tensor:
        """Samples of each group, rated or not: shape ``(n_groups,)``, float64."""
        return torch.bincount(self.group, minlength=self.n_groups).double()

    @cached_property
    def group_rated(self) -> Tensor:
        """Samples of each group that have a reward: shape ``(n_groups,)``, float64."""
        return self.group_size if self.missing is None else self.group_sum((~self.missing.all(dim=1)).double())

    @cached_property
    def group_count(self) -> Tensor:
        """Present rewards of each group and objective: shape ``(n_groups, K)``, float64."""
        if self.missing is None:
            return self.group_size[:, None].expand(-1, self.rewards.shape[1])
        return self.group_sum((~self.missing).double())

    @cached_property
    def group_min(self) -> Tensor:
        """Smallest present reward of each group and objective: shape ``(n_groups, K)``; 0 where there is none."""
        values = self.present_only(self.rewards, torch.inf)
        smallest = values.new_full((self.n_groups, values.shape[1]), torch.inf)
        smallest.scatter_reduce_(0, self.group[:, None].expand_as(values), values, "amin")
        return smallest if self.missing is None else smallest.masked_fill_(self.group_count == 0, 0.0)

    @cached_property
    def above_group_min(self) -> Tensor:
        """Each reward less the smallest of its group and objective: shape ``(N, K)``; 0 where missing.

        The difference of close numbers is exact: equal rewards are exactly 0 here, so that a later division by a
        standard deviation near 0 has no rounding error to blow up.
        """
        return self.present_only(self.rewards - self.of_group(self.group_min))

    @cached_property
    def group_sum_above_min(self) -> Tensor:
        """Sum of :attr:`above_group_min` over each group: shape ``(n_groups, K)``; 0 just where there is no spread."""
        return self.group_sum(self.above_group_min)

    @cached_property
    def deviations(self) -> Tensor:
        """Each reward minus the mean of its group and objective, over present values; 0 where missing.

        Shape ``(N, K)``. The deviations of a group add up to 0, so a missing value has no say.
        """
        means = self.group_sum_above_min / self.group_count  # 0 / 0 only where all are missing
        return self.present_only(self.above_group_min - self.of_group(means))


def make_batch(
    rewards: Tensor,
    groups: Groups,
    lengths: Tensor,
    *,
    minima: Sequence[float] | Tensor | None = None,
    maxima: Sequence[float] | Tensor | None = None,
    priorities: Sequence[float] | Tensor | None = None,
    names: Sequence[str] | None = None,
    penalty: Tensor | None = None,
) -> RewardBatch:
    """Check the values given to :func:`saw.compute_advantage` and put them into one object.

    ``lengths``, shape ``(N,)``, is on the device where the work is done; the shapes have been checked.

    Raises:
        ValueError: for no rewards, an infinite value, a reward below its minimum, a negative priority, a penalty that
            is not finite, a group id that is NaN or looks like another; the message names the place and the value.
        TypeError: if a group id is not hashable.
    """
    n, k = rewards.shape
    device = lengths.device
    names = _names(names, k)
    minima_ = _per_objective(minima, "minima", names, device)
    maxima_ = _per_objective(maxima, "maxima", names, device)
    priorities_ = _per_objective([1.0] * k if priorities is None else priorities, "priorities", names, device)
    assert priorities_ is not None
    _check_priorities(priorities_, names)

    raw = rewards.detach().to(device)
    values, missing = _check_finite(raw.double(), names)
    group, n_groups = group_index(groups, n)
    batch = RewardBatch(
        rewards=values,
        missing=missing,
        group=group.to(device),
        n_groups=n_groups,
        names=names,
        minima=minima_,
        maxima=maxima_,
        priorities=priorities_,
        penalty=None if penalty is None else _check_penalty(penalty.detach().to(device).double(), n),
        lengths=lengths.double(),
    )
    if minima_ is not None:
        _check_minima(batch, raw, minima_)
    return batch


def check_shapes(rewards: Tensor, response_mask: Tensor) -> None:
    """Check that rewards are ``(N, K)`` and the mask ``(N, T)``, both tensors.

    Raises:
        ValueError: for a wrong shape.
        TypeError: for anything but a tensor of real numbers.
    """
    for name, value in (("rewards", rewards), ("response_mask", response_mask)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
        if value.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected two dimensions")
        if value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}; expected real numbers")
    if rewards.numel() == 0:
        raise ValueError(f"no rewards: shape {tuple(rewards.shape)}; expected (N, K) with N and K at least 1")
    if len(response_mask) != len(rewards):
        raise ValueError(
            f"response_mask has {len(response_mask)} rows and rewards {len(rewards)}; expected one row a sample in both"
        )


def token_mask(response_mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A copy of the mask as numbers, and how many response tokens each sample has.

    Checked in few passes over ``(N, T)`` and without a further tensor of that size, as they are most of the time that
    an advantage takes.

    Args:
        response_mask (Tensor): shape ``(N, T)``; every value is 0 or 1, or a bool.
        dtype (torch.dtype): of the result, a floating-point type.

    Returns:
        tuple[Tensor, Tensor]: shapes ``(N, T)`` and ``(N,)``.

    Raises:
        ValueError: for any other value; the message names the sample, the token and the value.
    """
    tokens = response_mask.detach().to(dtype, copy=True)
    lengths = tokens.sum(dim=-1)
    if response_mask.dtype == torch.bool or tokens.numel() == 0:
        return tokens, lengths
    low, high = torch.stack(torch.aminmax(tokens)).tolist()
    good = low >= 0 and high <= 1  # a NaN is neither
    if good and response_mask.is_floating_point():
        # Values from 0 to 1 add up to the number of those that are not 0 only if these are all 1.
        good = torch.equal(torch.linalg.vector_norm(tokens, ord=0, dim=-1), lengths)
    if not good:
        j, t = ((tokens != 0) & (tokens != 1)).nonzero()[0].tolist()
        value = response_mask[j, t].item()
        raise ValueError(f"response_mask is {value} for token {t} of sample {j}; expected 1 on the response, else 0")
    return tokens, lengths


def _names(names: Sequence[str] | None, k: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"objective {i}" for i in range(k))
    names = tuple(names)
    if len(names) != k:
        raise ValueError(f"names has {len(names)} entries {names}; expected {k}, one for each objective")
    if len(set(names)) != k:
        raise ValueError(f"names {names} has a duplicate; expected a name of its own for each objective")
    return names


def _per_objective(
    values: Sequence[float] | Tensor | None, what: str, names: tuple[str, ...], device: torch.device
) -> Tensor | None:
    if values is None:
        return None
    tensor = torch.as_tensor(values, dtype=torch.float64, device=device)
    if tensor.shape != (len(names),):
        raise ValueError(f"{what} has shape {tuple(tensor.shape)}; expected ({len(names)},), one for each objective")
    if not all(abs(value) <= LARGEST for value in tensor.tolist()):
        raise ValueError(f"{what} is {tensor.tolist()}; expected finite numbers, at most {LARGEST:g} in size")
    return tensor


def _check_priorities(priorities: Tensor, names: tuple[str, ...]) -> None:
    for name, value in zip(names, priorities.tolist(), strict=True):
        if value < 0:
            raise ValueError(f"the priority of {name!r} is {value}; expected a number that is at least 0")


def _check_finite(values: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
    """The values with 0 where they are NaN, and where that is: None if nowhere."""
    missing = None
    low, high = torch.stack(torch.aminmax(values)).tolist()
    if math.isnan(low):  # so it is if any value is
        missing = values.isnan()
        values = values.masked_fill(missing, 0.0)
        low, high = torch.stack(torch.aminmax(values)).tolist()
        if missing.all():
            raise ValueError(f"no rewards: all {values.numel()} values are missing (NaN)")
    if max(-low, high) > LARGEST:
        j, k = (values.abs() > LARGEST).nonzero()[0].tolist()
        raise ValueError(
            f"the reward of {names[k]!r} is {values[j, k].item()} for sample {j}; "
            f"expected a finite number, at most {LARGEST:g} in size"
        )
    return values, missing


def _check_minima(batch: RewardBatch, raw: Tensor, minima: Tensor) -> None:
    # Compared in the rewards' own precision: float32 of -0.1 lies below the double -0.1.
    limits = minima.to(raw.dtype) if raw.is_floating_point() else minima
    if (batch.smallest < limits).any():
        j, k = (raw < limits).nonzero()[0].tolist()
        raise ValueError(
            f"the reward of {batch.names[k]!r} is {raw[j, k].item():g} for sample {j}, "
            f"below its stated minimum {minima[k].item():g}"
        )


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
