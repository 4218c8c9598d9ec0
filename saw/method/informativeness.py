r"""Measures of how much there is still to learn from an objective; SAW's weights are proportional to one of them.

A measure is a function of a :class:`~saw.method.context.Context`. It returns non-negative values of shape ``(K,)`` over
the whole batch, or ``(G, K)`` with ``options.over="group"``, one row per group. An undefined value is NaN and gets
weight 0. CV is the paper's measure. The paper's review asks for a comparison with the others; it names them without a
definition, so the formulas are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.context import Context
from saw.method.registry import measure
from saw.method.statistics import coefficient_of_variation


@measure("cv", needs=["minima"])
def cv(context: Context) -> Tensor:
    r"""Coefficient of variation above the minimum, :math:`\sigma / (\mu - min + \delta)` (paper, section 4)."""
    if context.options.over == "batch":
        return context.statistics.cv
    mean, std = context.moments
    return coefficient_of_variation(mean, std, context.batch.minima, context.options.numerics)


@measure("normalised_variance", needs=["minima"])
def normalised_variance(context: Context) -> Tensor:
    r"""Variance over the squared mean above the minimum, :math:`CV^2`: favours the larger CV more strongly."""
    return cv(context).square()


@measure("range_std", needs=["minima", "maxima"])
def range_std(context: Context) -> Tensor:
    r"""Standard deviation over the known range, :math:`\sigma / (max - min)`: independent of the mean."""
    return context.moments.std / (context.batch.maxima - context.batch.minima)


@measure("advantage_entropy")
def advantage_entropy(context: Context) -> Tensor:
    r"""Entropy of the sizes of the group-normalised advantages, :math:`-\sum_j p_j \ln p_j / \ln N`.

    With :math:`p_j \propto |A_{jk}|`: 1 if all advantages have the same size, 0 if at most one is non-zero.
    """
    batch = context.batch
    size = batch.deviations.abs() / batch.of_group(batch.group_std).clamp(min=1e-12)
    if context.options.over == "group":
        total, number = batch.group_sum(size), batch.group_count
        share = size / batch.of_group(total).clamp(min=1e-12)
        entropy = batch.group_sum(-torch.xlogy(share, share))
    else:
        share = size / size.sum(dim=0).clamp(min=1e-12)
        entropy, number = -torch.xlogy(share, share).sum(dim=0), batch.count
    return (entropy / number.clamp(min=2).log()).masked_fill(number == 0, torch.nan)


@measure("group_spread")
def group_spread(context: Context) -> Tensor:
    """Share of the groups in which the objective's rewards differ; 0 or 1 per group."""
    batch = context.batch
    differ, some = (batch.group_sum_above_min > 0).double(), batch.group_count > 0
    if context.options.over == "group":
        return differ.masked_fill(~some, torch.nan)
    return (differ * some).sum(dim=0) / some.sum(dim=0)  # 0 / 0 is NaN


@measure("gradient_norm", needs=["gradients"], reads=["gradient.layers", "gradient.reduction"])
def gradient_norm(context: Context) -> Tensor:
    r"""Norm of each objective's policy gradient, :math:`\|g_k\| = \sqrt{\langle g_k, g_k \rangle}`.

    Defined for the whole batch only, not per group.
    """
    assert context.gram is not None
    return context.gram.diagonal().clamp(min=0.0).sqrt()
