r"""CorrGRPO (arXiv 2609.36820): divide by the root of the summed correlations of the objectives, not by a deviation.

GRPO's denominator is the root of the sum of all covariances of the objectives. An objective with a large scale
dominates that sum, and so decides alone how much a group counts. Correlations have no scale. The more the objectives
agree, the smaller the advantages; objectives that contradict each other make them larger.

An objective without spread has correlation 0 with all, itself included. A missing reward contributes to no correlation,
as if it were the mean. A group of one has advantage 0 in every profile. In place of the small constant of the released
code, the profile's ``group_eps`` is added to the sum of the correlations, under the root.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.aggregation import factors, normalise, refuse_penalty
from saw.method.profiles import Profile
from saw.method.registry import Aggregation, weighting
from saw.method.reward_batch import RewardBatch
from saw.method.weighting import equal


def sum_over_correlations(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""CorrGRPO: the summed deviations of a group over the root of its summed correlations.

    .. math:: A_j = \frac{\sum_k n w_k \alpha_k (r_{jk} - \mu_{gk})}{\sqrt{\max(\sum_{kl} \rho_{gkl}, 0) + \epsilon}}
    """
    refuse_penalty(batch)
    parts = weights.shape[-1] * batch.deviations * factors(batch, weights)
    correlations = _sum_of_correlations(batch.group_sum(parts[:, :, None] * parts[:, None, :]))
    return parts.sum(dim=1) / batch.of_group((correlations + profile.group_eps).sqrt())


def normalise_then_sum_over_correlations(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""CorrGDPO, which only the released code has: GDPO with the batch's correlations in place of its variance.

    .. math:: A_j = \frac{S_j - \bar S}{\sqrt{\max(\sum_{kl} \rho_{kl}, 0) + \epsilon}}
              \qquad S_j = \sum_k n w_k \alpha_k A_{jk}

    with the correlations of the :math:`A_{jk}` over the samples that have a response and a reward, and the mean of S
    over tokens.
    """
    refuse_penalty(batch)
    parts = weights.shape[-1] * normalise(batch, profile) * factors(batch, weights)
    answered = (batch.rated_only(batch.lengths) > 0)[:, None]
    smallest = parts.masked_fill(~answered, torch.inf).amin(dim=0)  # subtracted first: equal values are exactly 0 then
    above = torch.where(answered, parts - smallest, 0.0)
    centred = torch.where(answered, above - above.sum(dim=0) / answered.sum().clamp(min=1), 0.0)
    correlations = _sum_of_correlations(centred.T @ centred)
    summed = parts.sum(dim=1)
    lengths = batch.rated_only(batch.lengths)
    mean = lengths @ summed / lengths.sum().clamp(min=1)
    return batch.rated_only((summed - mean) / (correlations + profile.group_eps).sqrt())


def _sum_of_correlations(products: Tensor) -> Tensor:
    """The sum of all correlations, at least 0, from sums of products of deviations: ``(..., K, K)`` to ``(...)``."""
    squares = products.diagonal(dim1=-2, dim2=-1)
    inverse = squares.clamp(min=1e-300).rsqrt() * (squares > 0)
    return (products * inverse[..., :, None] * inverse[..., None, :]).sum(dim=(-2, -1)).clamp(min=0.0)


weighting(
    "",
    aggregations={
        "corr_grpo": Aggregation(sum_over_correlations),
        "corr_gdpo": Aggregation(normalise_then_sum_over_correlations),
    },
)(equal)
