"""Weightings: how much each objective counts in this step.

A weighting is a function ``(context) -> weights``. The weights have shape ``(K,)`` and sum to 1, or shape
``(G, K)``, one row per group.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saw.method.aggregation import normalise_then_average, normalise_then_sum_only
from saw.method.context import Context, group_moments
from saw.method.options import GradientOptions
from saw.method.registry import GDPO, GRPO, Aggregation, get_measure, weighting
from saw.method.smoothing import SMOOTHING

MO_GRPO = Aggregation(normalise_then_sum_only, linear=normalise_then_sum_only)
DVAO = Aggregation(normalise_then_average, linear=normalise_then_average)


@weighting("", aggregations={"grpo": GRPO, "gdpo": GDPO, "mo_grpo": MO_GRPO})
def equal(context: Context) -> Tensor:
    """Equal weights, ``w_k = 1/K`` (GRPO and GDPO)."""
    return torch.full_like(context.statistics.mean, 1.0 / len(context.statistics.mean))


@weighting("saw_", reads=["informativeness", *SMOOTHING, "log_only"])
def stage_aware(context: Context) -> Tensor:
    r"""SAW's weights, :math:`w_k = CV_k / \sum_l CV_l` (paper, section 4), or with another measure in place of CV.

    All weights are equal if nothing varies (:math:`\sum_l CV_l < \delta`). An objective that is missing for all
    samples has no CV and gets weight 0, also when the others are weighted equally.
    """
    options = context.options
    values = get_measure(options.informativeness).values(context)
    return shares(values, options.numerics.equal_below)


def shares(values: Tensor, equal_below: float) -> Tensor:
    """Each value's share of the sum over the last dimension; equal shares, except for NaN, if the sum is too small."""
    known = ~values.isnan()
    values = values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    # Absolute: a negative or infinite value then gives a share that compute_advantage refuses.
    total = values.abs().sum(dim=-1, keepdim=True)
    known = known | ~known.any(dim=-1, keepdim=True)  # a group without any reward; its advantages are 0 anyway
    fallback = known / known.sum(dim=-1, keepdim=True)
    return torch.where(total < equal_below, fallback, values / total.clamp(min=equal_below))


@weighting("random_", reads=[*SMOOTHING, "log_only"])
def random(context: Context) -> Tensor:
    """A control: weights drawn uniformly from all that sum to 1 (a Dirichlet distribution), new ones in each step.

    They depend on the seed and the step only, so a resumed run and all processes draw the same ones.
    """
    mean = context.statistics.mean
    rng = np.random.default_rng([context.options.seed or 0, context.step])
    return torch.as_tensor(rng.dirichlet(np.ones(len(mean))), dtype=mean.dtype, device=mean.device)


@weighting("static_", needs=["static_weights"], reads=["static_weights"])
def static(context: Context) -> Tensor:
    """A control: the user's weights, ``options.static_weights``, scaled to sum to 1."""
    given = torch.as_tensor(context.options.static_weights, dtype=torch.float64).to(context.statistics.mean)
    return given / given.sum()


@weighting("", aggregations={"dvao": DVAO})
def group_std(context: Context) -> Tensor:
    r"""DVAO's weights (arXiv 2605.25604, according to a reading note), separate for each group.

    .. math:: w_{gk} = \sigma_{gk} / \sum_l \sigma_{gl}

    Equal if all rewards of a group are equal.
    """
    spread = group_moments(context.batch).std.nan_to_num(nan=0.0)
    total = spread.sum(dim=1, keepdim=True)
    return torch.where(total > 0, spread / total.clamp(min=1e-300), 1.0 / spread.shape[1])


@weighting(
    "gradient_",
    needs=["gradients", "learning_rate"],
    reads=[*(f"gradient.{field}" for field in GradientOptions.model_fields), *SMOOTHING],
)
def gradient(context: Context) -> Tensor:
    r"""Gradient-based weights (arXiv 2509.11452): larger for an objective whose gradient helps all objectives.

    .. math:: I_k = \sum_l \langle g_k, g_l \rangle \qquad
              w_t = \mathrm{softmax}(\log w_{t-1} + \tfrac{\eta}{\mu} I)

    The sum includes l = k, as in that paper's code, and the first weights are equal. With ``gradient.accumulate`` above
    1, the weights are updated only every so many steps, with the mean Gram matrix of these steps. With
    ``gradient.clip``, the gradients are clipped by :func:`clip_norms`.
    """
    options, start = context.options.gradient, context.previous
    if start is None:
        start = equal(context)
    if context.step % options.accumulate:
        return start
    assert context.gram is not None
    assert options.lr is not None
    influence = clip_norms(context.gram.to(start), options.clip).sum(dim=1)
    # A weight that has underflowed to 0 stays 0: log 0 is minus infinity, which softmax accepts.
    return torch.softmax(start.log() + options.lr / options.mu * influence, dim=0)


def clip_norms(gram: Tensor, limit: float | None) -> Tensor:
    r"""Inner products of gradients after each has been clipped to a norm, :math:`g_k \min(1, c / |g_k|)`.

    Clipping again changes nothing, nor does clipping a mean of clipped matrices. So where the Gram matrix is averaged
    over steps, the matrix of each step has to be clipped first.

    With two objectives, :math:`I_1 - I_2 = |g_1|^2 - |g_2|^2`: if both reach the limit, they have the same influence.

    Args:
        gram (Tensor): shape ``(K, K)``, of the unclipped gradients.
        limit (float | None): c, above 0; None does not clip.

    Returns:
        Tensor: shape ``(K, K)``.
    """
    if limit is None:
        return gram
    kept = limit / gram.diagonal().clamp(min=0.0).sqrt().clamp(min=limit)
    return gram * kept[:, None] * kept
