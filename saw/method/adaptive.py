r"""Weights that approach a target over many steps, and so have a memory."""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.aggregation import sum_then_normalise
from saw.method.context import Context
from saw.method.registry import GRPO, weighting
from saw.method.weighting import MO_GRPO, equal


@weighting(
    "",
    reads=["ctwa.targets", "ctwa.enough", "ctwa.ema", "ctwa.lr"],
    remembers=["next_weights", "covariance"],
    aggregations={"ctwa": GRPO},
)
def covariance_targeted(context: Context) -> tuple[Tensor, dict[str, Tensor]]:
    r"""CTWA (arXiv 2602.06869): the weight of an objective grows while its covariance with the advantages is too low.

    .. math:: c_k = \mathrm{mean}_g \, \mathrm{cov}_g(r_k, A) \qquad \bar c_k \leftarrow e \bar c_k + (1 - e) c_k \qquad
              \log w_k \leftarrow \log w_k + \eta \max(t_k - \bar c_k, 0)

    As in the released code, this step's covariances give the next step's weights. That code multiplies the advantages
    by the probability ratio after the update, and drops samples above a hundred times the median. Here the advantages
    are used as they are, because they are bounded. The weights are scaled to sum to 1, since GRPO divides their scale
    out. A group with fewer than two rewards of an objective has no covariance for it.
    """
    options, batch, mean = context.options.ctwa, context.batch, context.statistics.mean
    weights = context.memory.get("next_weights", equal(context))
    advantages = sum_then_normalise(batch, weights, context.options.numerics)
    several = (batch.group_count >= 2).to(mean)
    products = batch.group_sum(batch.deviations * advantages[:, None]) / batch.group_count.clamp(min=1)
    found = (products * several).sum(dim=0) / several.sum(dim=0).clamp(min=1)
    covariance = found
    if "covariance" in context.memory:
        covariance = options.ema * context.memory["covariance"] + (1.0 - options.ema) * found
    targets = torch.as_tensor(options.targets, dtype=mean.dtype, device=mean.device)
    missing = (targets - covariance).clamp(min=0.0)
    if options.enough is not None:
        enough = [torch.inf if value is None else value for value in options.enough]
        missing = missing * ~(mean >= torch.tensor(enough, dtype=mean.dtype, device=mean.device))
    grown = (weights.log() + options.lr * missing).softmax(dim=0)  # scaled without overflow
    return weights, {"next_weights": grown, "covariance": covariance}


@weighting(
    "",
    needs=["lagrangian_targets"],
    reads=["lagrangian.lr"],
    remembers=["multipliers"],
    aggregations={"lagrangian": MO_GRPO},
)
def lagrangian(context: Context) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The Lagrangian of the code of arXiv 2602.06869: maximise some objectives, subject to targets for the others.

    .. math:: \lambda_k \leftarrow \max\bigl(\lambda_k + \eta (t_k - \bar r_k), 0\bigr) \qquad
              w_k = \frac{\lambda_k}{\sum_l \lambda_l}

    with :math:`\bar r_k` the mean reward of the step. An objective without a target keeps :math:`\lambda_k = 1`; the
    others start at 0. The released code weights the advantages by the multipliers themselves. Here these are scaled to
    sum to 1, so that a large multiplier changes the balance but not the size of the step. If all rewards with a target
    are 0 or 1, this is Constrained GRPO (arXiv 2602.05863): costs that are indicators, the allowed rate of violations
    :math:`1 - t_k`, and components that are normalised before they are combined ("scalarised advantages").
    """
    options, mean = context.options.lagrangian, context.statistics.mean
    assert options.targets is not None
    targets = torch.tensor([torch.nan if target is None else target for target in options.targets], dtype=mean.dtype)
    targets = targets.to(mean.device)
    free = targets.isnan()
    multipliers = context.memory.get("multipliers", free.to(mean))
    violation = (targets - mean).nan_to_num(nan=0.0)  # nothing is known about a reward that is missing for all
    multipliers = torch.where(free, 1.0, (multipliers + options.lr * violation).clamp(min=0.0))
    return multipliers / multipliers.sum(), {"multipliers": multipliers}
