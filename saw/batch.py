"""One step's rewards, checked, with the bookkeeping of groups and missing values done once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import torch
from torch import Tensor

Groups = Sequence[Hashable] | Iterable[Hashable] | Tensor


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of all samples of a step.

    Attributes:
        rewards (Tensor): shape ``(N, K)``, float64; 0 where missing, so that sums need no special case.
        present (Tensor): shape ``(N, K)``, bool; False where the reward is missing.
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
    present: Tensor
    group: Tensor
    n_groups: int
    names: tuple[str, ...]
    minima: Tensor | None
    maxima: Tensor | None
    priorities: Tensor
    penalty: Tensor | None
    lengths: Tensor

    @property
    def rated(self) -> Tensor:
        """Shape ``(N,)``, bool: the samples that have at least one reward."""
        return self.present.any(dim=1)

    def group_sum(self, values: Tensor) -> Tensor:
        """Sum ``values``, shape ``(N,)`` or ``(N, K)``, over each group: shape ``(n_groups, ...)``, same dtype."""
        return values.new_zeros(self.n_groups, *values.shape[1:]).index_add_(0, self.group, values)

    def group_size(self) -> Tensor:
        """Samples of each group, rated or not: shape ``(n_groups,)``, int64."""
        return torch.bincount(self.group, minlength=self.n_groups)

    @cached_property
    def group_count(self) -> Tensor:
        """Present rewards of each group and objective: shape ``(n_groups, K)``, float64."""
        return self.group_sum(self.present.double())

    @cached_property
    def group_min(self) -> Tensor:
        """Smallest present reward of each group and objective: shape ``(n_groups, K)``; inf where there is none."""
        values = self.rewards.masked_fill(~self.present, torch.inf)
        smallest = values.new_full((self.n_groups, values.shape[1]), torch.inf)
        return smallest.scatter_reduce_(0, self.group[:, None].expand_as(values), values, "amin")

    @cached_property
    def above_group_min(self) -> Tensor:
        """Each reward less the smallest of its group and objective: shape ``(N, K)``; 0 where missing.

        The difference of close numbers is exact: equal rewards are exactly 0 here, so that a later division by a
        standard deviation near 0 has no rounding error to blow up.
        """
        smallest = self.group_min.nan_to_num(posinf=0.0)
        return (self.rewards - smallest[self.group]).mul_(self.present)

    @cached_property
    def group_sum_above_min(self) -> Tensor:
        """Sum of :attr:`above_group_min` over each group: shape ``(n_groups, K)``; 0 just where there is no spread."""
        return self.group_sum(self.above_group_min)

    def deviations(self) -> Tensor:
        """Each reward minus the mean of its group and objective, over present values; 0 where missing.

        Shape ``(N, K)``. The deviations of a group add up to 0, so a missing value has no say.
        """
        means = self.group_sum_above_min / self.group_count.clamp(min=1)
        return (self.above_group_min - means[self.group]).mul_(self.present)


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
        ValueError: for no rewards, an infinite value, a reward below its minimum, a negative priority; the
            message names the objective and the value.
        TypeError: if a group id is not hashable.
    """
    n, k = rewards.shape
    device = lengths.device
    names = _names(names, k)
    minima_ = _per_objective(minima, "minima", names, device)
    maxima_ = _per_objective(maxima, "maxima", names, device)
    priorities_ = _per_objective(priorities, "priorities", names, device)
    if priorities_ is None:
        priorities_ = torch.ones(k, dtype=torch.float64, device=device)
    _check_priorities(priorities_, names)

    raw = rewards.detach().to(device)
    present = ~raw.isnan()
    _check_values(raw, present, names, minima_)
    group, n_groups = _group_index(groups, n)
    if penalty is not None and penalty.shape != (n,):
        raise ValueError(f"penalty has shape {tuple(penalty.shape)}; expected ({n},), one value a sample")
    return RewardBatch(
        rewards=raw.double().masked_fill(~present, 0.0),
        present=present,
        group=group.to(device),
        n_groups=n_groups,
        names=names,
        minima=minima_,
        maxima=maxima_,
        priorities=priorities_,
        penalty=None if penalty is None else penalty.detach().to(device).double(),
        lengths=lengths.double(),
    )


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
    if rewards.is_complex():
        raise TypeError(f"rewards have dtype {rewards.dtype}; expected real numbers")
    if rewards.numel() == 0:
        raise ValueError(f"no rewards: shape {tuple(rewards.shape)}; expected (N, K) with N and K at least 1")
    if len(response_mask) != len(rewards):
        raise ValueError(
            f"response_mask has {len(response_mask)} rows and rewards {len(rewards)}; expected one row a sample in both"
        )


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
    if not tensor.isfinite().all():
        raise ValueError(f"{what} is {tensor.tolist()}; expected finite numbers")
    return tensor


def _check_priorities(priorities: Tensor, names: tuple[str, ...]) -> None:
    for name, value in zip(names, priorities.tolist(), strict=True):
        if value < 0:
            raise ValueError(f"the priority of {name!r} is {value}; expected a number that is at least 0")


def _check_values(raw: Tensor, present: Tensor, names: tuple[str, ...], minima: Tensor | None) -> None:
    if not present.any():
        raise ValueError(f"no rewards: all {raw.numel()} values are missing (NaN)")
    if raw.isinf().any():
        j, k = raw.isinf().nonzero()[0].tolist()
        raise ValueError(f"the reward of {names[k]!r} is {raw[j, k].item()} for sample {j}; expected a finite number")
    if minima is None:
        return
    # Compared in the rewards' own precision: float32 of -0.1 lies below the double -0.1.
    below = raw < minima.to(raw.dtype if raw.is_floating_point() else torch.float64)
    if below.any():
        j, k = below.nonzero()[0].tolist()
        raise ValueError(
            f"the reward of {names[k]!r} is {raw[j, k].item():g} for sample {j}, "
            f"below its stated minimum {minima[k].item():g}"
        )


def _group_index(groups: Groups, n: int) -> tuple[Tensor, int]:
    """Number the groups in the order of their first sample, without a Python-level loop."""
    if hasattr(groups, "tolist"):  # tensors and numpy arrays: their elements are hashable only as Python objects
        groups = groups.tolist()
    ids = list(groups)
    if len(ids) != n:
        raise ValueError(f"groups has {len(ids)} ids and rewards {n} rows; expected one id a sample")
    try:
        numbers = dict(zip(dict.fromkeys(ids), count(), strict=False))
        index = np.fromiter(map(numbers.__getitem__, ids), dtype=np.int64, count=n)
    except TypeError as error:
        raise TypeError(f"groups holds an id that is not hashable: {error}") from error
    return torch.from_numpy(index), len(numbers)
