r"""Weights from the inner products of the objectives' policy gradients :math:`g_k`.

The gradients are of each objective's own normalised advantages (:func:`saw.objective_advantages`), so that the gradient
of the combined advantages :math:`\sum_k w_k A_{jk}` is :math:`\sum_k w_k g_k`, up to clipping in the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.context import Context
from saw.method.registry import weighting
from saw.method.weighting import DVAO, MO_GRPO, equal, shares

#: What both methods read: which gradients are compared.
_GRADIENTS = ("gradient.layers", "gradient.reduction")
#: Steps of :func:`shortest`; two objectives need one.
ITERATIONS = 250


@weighting("", needs=["gradients"], reads=_GRADIENTS, aggregations={"mgda": DVAO})
def mgda(context: Context) -> Tensor:
    r"""MGDA (Désidéri 2012; Sener and Koltun, arXiv 1810.04650): the shortest combination of the gradients.

    .. math:: w = \arg\min_{w \ge 0, \sum_k w_k = 1} \Bigl\| \sum_k w_k g_k \Bigr\|^2

    A step along it worsens no objective, to first order. It is short where an objective has little gradient left, and
    that objective then has most of the weight. The gradients are not normalised, as by default in the code of
    arXiv 2602.06869.
    """
    assert context.gram is not None
    return shortest(context.gram.to(context.statistics.mean))


def shortest(gram: Tensor) -> Tensor:
    """Weights of the shortest vector in the convex hull of K vectors.

    Frank and Wolfe's method, as in arXiv 1810.04650, with pairwise steps. Each moves weight from the vector with the
    largest inner product with the combination to the one with the smallest, as far as that shortens the combination.

    Args:
        gram (Tensor): shape ``(K, K)``, inner products.

    Returns:
        Tensor: shape ``(K,)``; at least 0, with sum 1.
    """
    size = len(gram)
    numbers = torch.arange(size, device=gram.device)
    weights = torch.full_like(gram[0], 1.0 / size)
    for _ in range(1 if size <= 2 else ITERATIONS):
        along = (gram * weights).sum(dim=1)
        to = (numbers == along.argmin()).to(gram)
        source = (numbers == along.masked_fill(weights <= 0, -torch.inf).argmax()).to(gram)
        direction = to - source
        gain, curvature = -(direction * along).sum(), (direction[:, None] * gram * direction).sum()
        step = torch.minimum(gain / curvature.clamp(min=1e-300), (weights * source).sum())
        weights = weights + step.clamp(min=0.0) * direction
    return weights.clamp(min=0.0)


@weighting(
    "",
    needs=["gradients", "maxima"],
    reads=["gradnorm.alpha", "gradnorm.lr", *_GRADIENTS],
    remembers=["first_distance"],
    aggregations={"gradnorm": MO_GRPO},
)
def gradnorm(context: Context) -> tuple[Tensor, dict[str, Tensor]]:
    r"""GradNorm (Chen et al., arXiv 1711.02257): larger gradient norms for objectives that lag behind.

    .. math:: G_k = v_k \|g_k\| \qquad x_k = \frac{L_k / L_{k0}}{\mathrm{mean}_l(L_l / L_{l0})} \qquad
              v \leftarrow v - \eta \nabla_v \sum_k \bigl| G_k - \bar G x_k^a \bigr|

    for weights :math:`v_k = n w_k` that sum to n, with the target :math:`\bar G x_k^a` held fixed, and scaled back to
    their sum. The loss :math:`L_k` is the distance of the mean reward from its maximum. The code of arXiv 2602.06869
    takes the policy loss, which is about 0 in every step for normalised advantages. That code lets a weight become
    negative; here it is at least 0. An objective that starts at its maximum does not count as lagging.
    """
    assert context.gram is not None
    options, size = context.options.gradnorm, len(context.statistics.mean)
    norms = context.gram.to(context.statistics.mean).diagonal().clamp(min=0.0).sqrt()
    weights = size * (equal(context) if context.previous is None else context.previous)
    distance = (context.batch.maxima - context.statistics.mean).clamp(min=0.0)
    first = context.memory.get("first_distance", distance.nan_to_num(nan=0.0))
    rate = torch.where((first > 0) & ~distance.isnan(), distance / first.clamp(min=1e-300), 1.0)
    lag = rate / rate.mean().clamp(min=1e-300)
    weighted = weights * norms
    target = weighted.mean() * lag**options.alpha
    moved = weights - options.lr * torch.sign(weighted - target) * norms
    return shares(moved.clamp(min=0.0), 1e-300), {"first_distance": first}
