"""The rewards of one step; what depends on groups and missing values is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from saw.method.groups import Grouping


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of all samples of a step.

    Attributes:
        rewards (Tensor): shape ``(N, K)``, float64; 0 where missing, so that sums need no special case.
        missing (Tensor | None): shape ``(N, K)``, bool; True where the reward is missing. None if no reward is missing,
            the common case, in which nothing has to be filled or counted.
        groups (Grouping): which samples belong together; G is their number.
        smallest (Tensor): shape ``(K,)``, float64, the smallest present reward of each objective; NaN if there is none.
        largest (Tensor): shape ``(K,)``, float64, the largest.
        minima (Tensor): shape ``(K,)``, float64, the theoretical minimum of each objective; NaN if unknown.
        maxima (Tensor): shape ``(K,)``, float64, the theoretical maximum of each objective; NaN if unknown.
        priorities (Tensor): shape ``(K,)``, float64, the user's static weight of each objective.
        penalty (Tensor | None): shape ``(N,)``, float64, subtracted from the combined reward (an in-reward KL penalty).
        lengths (Tensor): shape ``(N,)``, float64, response tokens of each sample.
        ddof (int): variances are divided by the number of values minus this.
    """

    rewards: Tensor
    missing: Tensor | None
    groups: Grouping
    smallest: Tensor
    largest: Tensor
    minima: Tensor
    maxima: Tensor
    priorities: Tensor
    penalty: Tensor | None
    lengths: Tensor
    ddof: int = 1

    def present_only(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """``values``, shape ``(N, K)``, with ``fill`` where the reward is missing."""
        return values if self.missing is None else values.masked_fill(self.missing, fill)

    def rated_only(self, values: Tensor) -> Tensor:
        """``values``, shape ``(N,)``, with 0 for samples without any reward."""
        return values if self.missing is None else values.masked_fill(self.missing.all(dim=1), 0.0)

    def group_sum(self, values: Tensor) -> Tensor:
        """Sum ``values``, shape ``(N, ...)``, per group: shape ``(G, ...)``, same dtype."""
        return self.groups.sum(values)

    def of_group(self, values: Tensor) -> Tensor:
        """Give each sample the value of its group: ``(G, ...)`` to ``(N, ...)``."""
        return self.groups.spread(values)

    @cached_property
    def count(self) -> Tensor:
        """Number of present rewards per objective: shape ``(K,)``, float64."""
        if self.missing is None:
            return self.rewards.new_full(self.rewards.shape[1:], len(self.rewards))
        return (~self.missing).sum(dim=0).double()

    @cached_property
    def group_size(self) -> Tensor:
        """Number of samples per group, with or without rewards: shape ``(G,)``, float64."""
        return self.groups.size(self.rewards)

    @cached_property
    def group_rated(self) -> Tensor:
        """Number of samples per group with at least one reward: shape ``(G,)``, float64."""
        return self.group_size if self.missing is None else self.group_sum((~self.missing.all(dim=1)).double())

    @cached_property
    def group_count(self) -> Tensor:
        """Number of present rewards per group and objective: shape ``(G, K)``, float64."""
        if self.missing is None:
            return self.group_size[:, None].expand(-1, self.rewards.shape[1])
        return self.group_sum((~self.missing).double())

    @cached_property
    def group_min(self) -> Tensor:
        """Smallest present reward per group and objective: shape ``(G, K)``; 0 if all are missing."""
        smallest = self.groups.min(self.present_only(self.rewards, torch.inf))
        return smallest if self.missing is None else smallest.masked_fill_(self.group_count == 0, 0.0)

    @cached_property
    def above_group_min(self) -> Tensor:
        """Each reward minus the smallest of its group and objective: shape ``(N, K)``; 0 where missing.

        The difference of close numbers is exact: equal rewards are exactly 0 here, so a later division by a standard
        deviation near 0 cannot amplify a rounding error.
        """
        return self.present_only(self.rewards - self.of_group(self.group_min))

    @cached_property
    def group_sum_above_min(self) -> Tensor:
        """Sum of :attr:`above_group_min` per group: shape ``(G, K)``; 0 exactly where all rewards are equal."""
        return self.group_sum(self.above_group_min)

    @cached_property
    def deviations(self) -> Tensor:
        """Each reward minus the mean of its group and objective, over present values; 0 where missing.

        Shape ``(N, K)``. The deviations of a group sum to 0, so a missing value contributes nothing.
        """
        means = self.group_sum_above_min / self.group_count  # 0 / 0 only where all are missing
        return self.present_only(self.above_group_min - self.of_group(means))

    @cached_property
    def group_std(self) -> Tensor:
        """Standard deviation per group and objective: shape ``(G, K)``; 0 for fewer than two rewards."""
        return std_of_squares(self.group_sum(self.deviations.square()), self.group_count, self.ddof)


def std_of_squares(squares: Tensor, number: Tensor, ddof: int = 1) -> Tensor:
    """Standard deviation from the sum of squared deviations of ``number`` values; 0 for fewer than two."""
    return (squares / (number - ddof).clamp(min=1)).sqrt()


def extremes(rewards: Tensor, missing: Tensor | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest present reward per objective: shape ``(K,)`` each; NaN if all are missing."""
    if missing is None:
        low, high = torch.aminmax(rewards, dim=0)
        return low, high
    none = missing.all(dim=0)
    low = rewards.masked_fill(missing, torch.inf).amin(dim=0).masked_fill(none, torch.nan)
    return low, rewards.masked_fill(missing, -torch.inf).amax(dim=0).masked_fill(none, torch.nan)
