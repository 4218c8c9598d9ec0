"""Aggregations: from the rewards of several objectives to one advantage per sample.

An aggregation is a function ``(batch, weights, profile) -> advantages``, shape ``(N,)``, float64. ``weights`` has shape
``(K,)`` and sums to 1, or ``(G, K)`` with one row per group; it is multiplied by the priorities in the batch. A missing
reward is left out of every mean, standard deviation and sum, and a sample without any reward has advantage 0.
Only aggregations with ``takes_penalty`` can subtract a penalty; all others refuse it (:func:`refuse_penalty`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.profiles import Profile
from saw.method.reward_batch import RewardBatch, std_of_squares


def sum_then_normalise(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""GRPO: combine the rewards, then normalise within the group.

    .. math:: R_j = \sum_k w_k \alpha_k r_{jk} \qquad A_j = (R_j - \mu_g) / (\sigma_g + \epsilon)

    The sum is computed from the deviations within the group. This way a missing reward contributes nothing to its
    sample, as if it were the group mean, and a large common offset costs no precision.
    """
    factor = weights * batch.priorities
    if profile.sum_of_weights == "objectives":
        factor = factor * weights.shape[-1]
    combined = _weigh(batch, batch.deviations, factor)
    if batch.penalty is not None:
        mean = batch.group_sum(batch.rated_only(batch.penalty)) / batch.group_rated.clamp(min=1)
        combined = combined - batch.rated_only(batch.penalty - batch.of_group(mean))
    std = std_of_squares(batch.group_sum(combined.square()), batch.group_rated, batch.ddof)
    advantages = combined / batch.of_group(std + profile.group_eps)
    if profile.lone_sample == "raw":
        raw = _weigh(batch, batch.rewards, factor)
        if batch.penalty is not None:
            raw = raw - batch.penalty
        advantages = torch.where(_lone(batch), raw / (1 + profile.group_eps), advantages)
    return batch.rated_only(advantages)


def normalise_then_sum(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""GDPO (arXiv 2601.05242): normalise each objective within the group, combine, whiten over the batch.

    .. math:: A_{jk} = (r_{jk} - \mu_{gk}) / (\sigma_{gk} + \epsilon) \qquad
              A_j = \mathrm{whiten}\bigl(\sum_k n w_k \alpha_k A_{jk}\bigr)

    The factor n, the number of objectives, keeps the size of equally weighted GDPO (paper, section 4).
    """
    combined = normalise_then_sum_only(batch, weights, profile)
    return whiten_batch(batch, combined, profile)


def normalise_then_sum_only(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""MO-GRPO (arXiv 2509.22047): as :func:`normalise_then_sum`, without whitening over the batch.

    .. math:: A_j = \sum_k n w_k \alpha_k A_{jk}
    """
    return weights.shape[-1] * _normalise_then_weigh(batch, weights, profile)


def normalise_then_average(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""DVAO (arXiv 2605.25604): the mean of the objectives' advantages, weighted by weights times priorities.

    .. math:: A_j = \sum_k w_k \alpha_k A_{jk} / \sum_k w_k \alpha_k
    """
    total = (weights * batch.priorities).sum(dim=-1, keepdim=True).clamp(min=1e-300)  # 0 without any priority
    return _normalise_then_weigh(batch, weights / total, profile)


def _normalise_then_weigh(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    refuse_penalty(batch)
    return _weigh(batch, normalise(batch, profile), weights * batch.priorities)


def normalise(batch: RewardBatch, profile: Profile) -> Tensor:
    r"""Each objective's own advantages, :math:`A_{jk} = (r_{jk} - \mu_{gk}) / (\sigma_{gk} + \epsilon)`: ``(N, K)``."""
    normalised = batch.deviations / batch.of_group(batch.group_std + profile.group_eps)
    if profile.lone_sample == "raw":
        lone = _lone(batch)[:, None]
        normalised = torch.where(lone, batch.rewards / (1 + profile.group_eps), normalised)
    return normalised


def refuse_penalty(batch: RewardBatch) -> None:
    """Refuse a penalty in a method that has no sum of rewards to subtract it from.

    Raises:
        ValueError: if the batch has a penalty.
    """
    if batch.penalty is not None:
        raise ValueError("a penalty needs a sum of rewards to be subtracted from; this method has none")


def factors(batch: RewardBatch, weights: Tensor) -> Tensor:
    """Weights times priorities, which multiply the objectives: shape ``(K,)``, or ``(N, K)`` for weights per group."""
    products = weights * batch.priorities
    return products if products.ndim == 1 else batch.of_group(products)


def _weigh(batch: RewardBatch, values: Tensor, factor: Tensor) -> Tensor:
    """Weighted sum over the objectives: ``values`` has shape ``(N, K)``, ``factor`` ``(K,)`` or ``(G, K)``."""
    return values @ factor if factor.ndim == 1 else (values * batch.of_group(factor)).sum(dim=1)


def whiten_batch(batch: RewardBatch, advantages: Tensor, profile: Profile, kept: Tensor | None = None) -> Tensor:
    """Whiten over the response tokens or the samples of the batch, or not at all (``profile.whitening``).

    A sample without any reward is left out, and has advantage 0. So is one that is False in ``kept``, shape ``(N,)``.
    """
    if profile.whitening == "none":
        return batch.rated_only(advantages)
    counts = batch.lengths if profile.whitening == "tokens" else torch.ones_like(batch.lengths)
    counts = counts if kept is None else counts * kept
    return batch.rated_only(whiten(advantages, batch.rated_only(counts), profile))


def whiten(advantages: Tensor, counts: Tensor, profile: Profile) -> Tensor:
    """Shift and scale to mean 0 and variance 1, where each value counts a given number of times.

    Every token of a sample carries the sample's advantage, so the moments over tokens are moments over
    samples, weighted by length.

    Args:
        advantages (Tensor): shape ``(N,)``.
        counts (Tensor): how often each counts, shape ``(N,)``; 0 leaves it out of the moments.
        profile (Profile): ``ddof``, and the epsilon and what it is added to.

    Returns:
        Tensor: shape ``(N,)``.
    """
    number = counts.sum()
    mean = counts @ advantages / number.clamp(min=1)
    centred = advantages - mean
    variance = counts @ centred.square() / (number - profile.ddof).clamp(min=1)
    if profile.whitening_eps_on == "std":
        return centred / (variance.sqrt() + profile.whitening_eps)
    return centred * (variance + profile.whitening_eps).rsqrt()


def _lone(batch: RewardBatch) -> Tensor:
    """Shape ``(N,)``: True for a sample that is alone in its group."""
    return batch.of_group(batch.group_size == 1)
