r"""Scalar rewards that are not weighted sums; they are then normalised within the group, as in GRPO.

A group of one has advantage 0 in every profile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.aggregation import factors, refuse_penalty
from saw.method.profiles import Profile
from saw.method.registry import Aggregation, weighting
from saw.method.reward_batch import RewardBatch, std_of_squares
from saw.method.weighting import equal

#: Distance of HVO's reference point from the smallest rewards; the value of the released script.
MARGIN = 0.1


def worst_distance_then_normalise(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""Tchebycheff scalarisation (Bowman 1976), as in the code of arXiv 2602.06869: only the worst objective counts.

    .. math:: s_j = -\max_k w_k \alpha_k (z_k - r_{jk}) \qquad A_j = (s_j - \mu_g) / (\sigma_g + \epsilon)

    The ideal point z is the objectives' maxima, which is one choice of that code; its default is the largest rewards so
    far. A missing reward never counts as the worst.
    """
    distance = batch.present_only(factors(batch, weights) * (batch.maxima - batch.rewards), -torch.inf)
    return _normalise(batch, batch.rated_only(-distance.amax(dim=1)), profile)


def product_then_normalise(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""HVO (arXiv 2510.19325): the volume that a sample spans above a reference point.

    .. math:: R_j = \prod_k (r_{jk} - \min_i r_{ik} + 0.1) \qquad A_j = (R_j - \mu_g) / (\sigma_g + \epsilon)

    The minimum is the smallest reward of the batch; 0.1 is the released script's value, for rewards in [0, 1]. That
    script switches the division by the standard deviation off. Here it is on, as in GRPO, because the volume's scale is
    arbitrary. A missing reward counts as the mean of its group; in the released code it is the factor 1, which favours
    the sample. Weights and priorities would be constant factors and have no effect.
    """
    above = batch.rewards - batch.smallest
    if batch.missing is not None:
        mean = batch.group_min + batch.group_sum_above_min / batch.group_count.clamp(min=1)
        above = torch.where(batch.missing, batch.of_group(mean) - batch.smallest, above)
        above = above.masked_fill(batch.of_group(batch.group_count == 0), 0.0)
    volume = (above + MARGIN).prod(dim=1)
    return _normalise(batch, batch.rated_only(volume), profile)


def _normalise(batch: RewardBatch, scores: Tensor, profile: Profile) -> Tensor:
    refuse_penalty(batch)
    rated = scores if batch.missing is None else scores.masked_fill(batch.missing.all(dim=1), torch.inf)
    # Exactly 0 where all scores of a group are equal.
    above = batch.rated_only(scores - batch.of_group(batch.groups.min(rated)))
    mean = batch.group_sum(above) / batch.group_rated.clamp(min=1)
    centred = batch.rated_only(above - batch.of_group(mean))
    std = std_of_squares(batch.group_sum(centred.square()), batch.group_rated, batch.ddof)
    return centred / batch.of_group(std + profile.group_eps)


weighting("", needs=["maxima"], aggregations={"tchebycheff": Aggregation(worst_distance_then_normalise)})(equal)
weighting("", aggregations={"hvo": Aggregation(product_then_normalise, takes_weights=False)})(equal)
