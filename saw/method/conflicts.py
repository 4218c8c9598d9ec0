r"""GD²PO (arXiv 2606.16771): GDPO without the samples about which the objectives disagree.

A sample whose advantage is positive for one objective and negative for another is dropped: its advantage is 0, and the
whitening leaves it out. The rest of its group is scaled by the share that was kept, before the whitening. The sample
still counts in the mean and the standard deviation of its group. An objective with priority 0 causes no conflict.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saw.method.aggregation import factors, normalise, refuse_penalty, whiten_batch
from saw.method.profiles import Profile
from saw.method.registry import Aggregation, weighting
from saw.method.reward_batch import RewardBatch
from saw.method.weighting import equal

#: Size above which an advantage has a sign, as in the released code.
SIGN = 1e-8
#: For ``gd2po_snr``: a conflict whose ratio is at least this is not severe; the value of the released scripts.
RATIO = 0.8


def drop_conflicts(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""GD²PO with its hard filter: every sample with both signs among its advantages is dropped.

    .. math:: A_j = \mathrm{whiten}\bigl(m_j q_g \sum_k n w_k \alpha_k A_{jk}\bigr) \qquad
              q_g = \frac{1}{|g|} \sum_{j \in g} m_j

    with :math:`m_j` 0 for a conflict and 1 otherwise.
    """
    parts = _parts(batch, weights, profile)
    return _whiten_kept(batch, parts, ~_conflict(parts), profile)


def drop_severe_conflicts(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    r"""GD²PO with its soft filter: a conflict is dropped only if most of its advantages cancel out.

    As :func:`drop_conflicts`, with :math:`m_j = 0` only if also
    :math:`|\sum_k A_{jk}| / \sum_k |A_{jk}| < 0.8`.
    """
    parts = _parts(batch, weights, profile)
    ratio = parts.sum(dim=1).abs() / parts.abs().sum(dim=1).clamp(min=SIGN)
    return _whiten_kept(batch, parts, ~(_conflict(parts) & (ratio < RATIO)), profile)


def _parts(batch: RewardBatch, weights: Tensor, profile: Profile) -> Tensor:
    """Each objective's share of the advantage: shape ``(N, K)``."""
    refuse_penalty(batch)
    return normalise(batch, profile) * factors(batch, weights.shape[-1] * weights)


def _conflict(parts: Tensor) -> Tensor:
    return (parts > SIGN).any(dim=1) & (parts < -SIGN).any(dim=1)


def _whiten_kept(batch: RewardBatch, parts: Tensor, kept: Tensor, profile: Profile) -> Tensor:
    share = batch.group_sum(kept.double()) / batch.group_size
    combined = torch.where(kept, parts.sum(dim=1) * batch.of_group(share), 0.0)
    return torch.where(kept, whiten_batch(batch, combined, profile, kept), 0.0)


weighting(
    "",
    aggregations={"gd2po": Aggregation(drop_conflicts), "gd2po_snr": Aggregation(drop_severe_conflicts)},
)(equal)
