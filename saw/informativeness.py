r"""Measures of how much an objective still has to say; SAW's weights are proportional to one of them.

Each is a function ``(batch, statistics, profile) -> values``, at least 0, of shape ``(K,)`` over the whole batch, or
of shape ``(G, K)`` with one row a group. A value that does not exist is NaN, and gets weight 0. The paper's is the
coefficient of variation; the others are what its review asks it to be compared with. The sources name these and do
not define them: the formulas are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saw.batch import RewardBatch
from saw.options import Profile
from saw.statistics import ObjectiveStatistics


@dataclass(frozen=True)
class Moments:
    """Mean and spread of each objective, where it is measured.

    Attributes:
        mean (Tensor): shape ``(K,)`` or ``(G, K)``; NaN without a reward.
        std (Tensor): the same shape, with ddof=1.
    """

    mean: Tensor
    std: Tensor


def batch_moments(statistics: ObjectiveStatistics) -> Moments:
    """Over the whole batch."""
    return Moments(statistics.mean, statistics.std)


def group_moments(batch: RewardBatch) -> Moments:
    """Over each group."""
    number = batch.group_count
    none = number == 0
    mean = batch.group_min.masked_fill(none, torch.nan) + batch.group_sum_above_min / number.clamp(min=1)
    squares = batch.group_sum(batch.deviations.square())
    return Moments(mean, (squares / (number - 1).clamp(min=1)).sqrt().masked_fill(none, torch.nan))


def cv(batch: RewardBatch, moments: Moments, profile: Profile) -> Tensor:
    r"""Coefficient of variation above the minimum, :math:`\sigma / (\mu - min + \delta)` (paper, section 4)."""
    assert batch.minima is not None
    return moments.std / (moments.mean - batch.minima + profile.cv_shift + profile.cv_eps)


def normalised_variance(batch: RewardBatch, moments: Moments, profile: Profile) -> Tensor:
    r"""Variance over the squared mean above the minimum, :math:`CV^2`: prefers the larger CV more sharply."""
    return cv(batch, moments, profile).square()


def range_std(batch: RewardBatch, moments: Moments, profile: Profile) -> Tensor:
    r"""Standard deviation over the known range, :math:`\sigma / (max - min)`: does not look at the mean."""
    assert batch.minima is not None
    assert batch.maxima is not None
    return moments.std / (batch.maxima - batch.minima)


def advantage_entropy(batch: RewardBatch, over_groups: bool) -> Tensor:
    r"""Entropy of the sizes of the group-normalised advantages, :math:`-\sum_j p_j \ln p_j / \ln N`.

    With :math:`p_j \propto |A_{jk}|`: 1 if all samples say as much as each other, 0 if one says all, or none.
    """
    deviations = batch.deviations
    std = (batch.group_sum(deviations.square()) / (batch.group_count - 1).clamp(min=1)).sqrt()
    size = deviations.abs() / std[batch.group].clamp(min=1e-12)
    if over_groups:
        total, number = batch.group_sum(size), batch.group_count
        share = size / total[batch.group].clamp(min=1e-12)
        entropy = batch.group_sum(-torch.xlogy(share, share))
    else:
        share = size / size.sum(dim=0).clamp(min=1e-12)
        entropy, number = -torch.xlogy(share, share).sum(dim=0), batch.count
    return (entropy / number.clamp(min=2).log()).masked_fill(number == 0, torch.nan)


def group_spread(batch: RewardBatch, over_groups: bool) -> Tensor:
    """Share of the groups in which the objective's rewards differ; over each group 0 or 1."""
    differ = (batch.group_sum_above_min > 0).double()
    if over_groups:
        return differ.masked_fill(batch.group_count == 0, torch.nan)
    some = batch.group_count > 0
    return (differ * some).sum(dim=0) / some.sum(dim=0)  # 0 / 0 is NaN


def gradient_norm(gram: Tensor | None) -> Tensor:
    r"""Size of each objective's policy gradient, :math:`\|g_k\| = \sqrt{\langle g_k, g_k \rangle}`, shape ``(K,)``.

    Args:
        gram (Tensor | None): shape ``(K, K)``, inner products of the gradients.
    """
    assert gram is not None
    return gram.diagonal().clamp(min=0.0).sqrt()


_OF_MOMENTS: dict[str, Callable[[RewardBatch, Moments, Profile], Tensor]] = {
    "cv": cv,
    "normalised_variance": normalised_variance,
    "range_std": range_std,
}
_OF_GROUPS: dict[str, Callable[[RewardBatch, bool], Tensor]] = {
    "advantage_entropy": advantage_entropy,
    "group_spread": group_spread,
}
#: Those that need each objective's minimum, and those that need its maximum.
NEED_MINIMA, NEED_MAXIMA = ("cv", "normalised_variance", "range_std"), ("range_std",)


def measure(name: str, over: str, batch: RewardBatch, statistics: ObjectiveStatistics, profile: Profile) -> Tensor:
    """A measure by its name, shape ``(K,)``, or ``(G, K)`` over groups.

    Args:
        name (str): see :data:`saw.options.Informativeness`.
        over (str): batch or group.
        batch (RewardBatch): the step's rewards.
        statistics (ObjectiveStatistics): theirs.
        profile (Profile): the constants.
    """
    if name in _OF_GROUPS:
        return _OF_GROUPS[name](batch, over == "group")
    moments = group_moments(batch) if over == "group" else batch_moments(statistics)
    return _OF_MOMENTS[name](batch, moments, profile)
