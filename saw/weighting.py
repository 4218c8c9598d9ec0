"""Weightings: how much each objective counts in this step.

A weighting is a function ``(statistics, profile) -> weights``, shape ``(K,)``, that add up to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saw.options import Profile
from saw.statistics import ObjectiveStatistics


def equal(statistics: ObjectiveStatistics, profile: Profile) -> Tensor:
    """Every objective counts the same, ``w_k = 1/K`` (GRPO and GDPO)."""
    return torch.full_like(statistics.mean, 1.0 / len(statistics.mean))


def stage_aware(statistics: ObjectiveStatistics, profile: Profile) -> Tensor:
    r"""SAW's weights, :math:`w_k = CV_k / \sum_l CV_l` (paper, section 4).

    All weights are equal when nothing varies (:math:`\sum_l CV_l < \delta`). An objective that is missing for
    all samples has no CV and gets weight 0; the fallback shares the weight among the others.
    """
    cv = statistics.cv.nan_to_num(nan=0.0)
    known = ~statistics.cv.isnan()
    total = cv.sum()
    return torch.where(total < profile.equal_below, known / known.sum(), cv / total.clamp(min=profile.equal_below))
