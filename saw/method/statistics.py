"""Statistics of each objective's rewards in one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saw.method.profiles import Profile
from saw.method.reward_batch import RewardBatch, std_of_squares


@dataclass(frozen=True)
class ObjectiveStatistics:
    """Statistics of each objective over the present rewards of the whole batch.

    All of shape ``(K,)``. For an objective without any reward, mean, std, minimum, maximum and CV are NaN (its
    weight is 0). The standard deviation of one value is 0.

    Attributes:
        mean (Tensor): float64.
        std (Tensor): float64, with ddof=1 unless the profile says otherwise.
        min (Tensor): float64, the smallest reward seen.
        max (Tensor): float64, the largest reward seen.
        cv (Tensor): float64, coefficient of variation of the shifted rewards, see :func:`coefficient_of_variation`;
            NaN if the objective's minimum is unknown.
        zero_spread (Tensor): float64 in [0, 1], share of the groups in which all present rewards of the
            objective are equal; nothing can be learned about it from such a group.
        missing (Tensor): int64, number of missing rewards.
    """

    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    cv: Tensor
    zero_spread: Tensor
    missing: Tensor


def coefficient_of_variation(mean: Tensor, std: Tensor, minima: Tensor, profile: Profile) -> Tensor:
    r"""Relative spread of an objective, :math:`CV_k = \sigma(s_k) / (\mu(s_k) + \delta)`.

    With :math:`s_{jk} = r_{jk} - min_k + \delta`; the shift does not change the standard deviation, so the mean and
    std of the rewards suffice (paper, section 4; constants in :class:`~saw.method.profiles.Profile`).

    Args:
        mean (Tensor): mean of the rewards, shape ``(K,)``.
        std (Tensor): their standard deviation, shape ``(K,)``.
        minima (Tensor): their theoretical minima, shape ``(K,)``.
        profile (Profile): the constants.

    Returns:
        Tensor: shape ``(K,)``; NaN for an objective without a mean or a known minimum.
    """
    above = (mean - minima).clamp(min=0.0)  # rounding: -0.1 in float32 is below -0.1 in float64
    return std / (above + profile.cv_shift + profile.cv_eps)


def objective_statistics(batch: RewardBatch, profile: Profile) -> ObjectiveStatistics:
    """Compute :class:`ObjectiveStatistics` in double precision.

    The smallest reward is subtracted first, and the moments take two passes: a large offset costs no precision, and
    a constant objective has a standard deviation of exactly 0.
    """
    number = batch.count
    smallest = batch.smallest
    above = batch.rewards - smallest
    mean_above = batch.present_only(above).sum(dim=0) / number
    squares = batch.present_only(above - mean_above).square().sum(dim=0)
    std = std_of_squares(squares, number, batch.ddof)
    if batch.missing is not None:
        std = std.masked_fill(number == 0, torch.nan)
    mean = smallest + mean_above
    return ObjectiveStatistics(
        mean=mean,
        std=std,
        min=smallest,
        max=batch.largest,
        cv=coefficient_of_variation(mean, std, batch.minima, profile),
        zero_spread=(batch.group_sum_above_min == 0).double().mean(dim=0),
        missing=len(batch.rewards) - number.long(),
    )
