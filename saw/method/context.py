"""The data of one training step that a weighting or a measure receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from saw.method.options import Options
from saw.method.reward_batch import RewardBatch
from saw.method.statistics import ObjectiveStatistics


class Moments(NamedTuple):
    """Mean and standard deviation of each objective, shape ``(K,)`` or ``(G, K)``; NaN without a reward."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Context:
    """The input of a weighting or a measure.

    Attributes:
        batch (RewardBatch): the step's rewards.
        statistics (ObjectiveStatistics): their statistics.
        options (Options): the user's options.
        step (int): the training step.
        previous (Tensor | None): shape ``(K,)``, the weights used in the previous step; None at the first step.
        gram (Tensor | None): shape ``(K, K)``, inner products of the objectives' policy gradients.
        memory (Mapping[str, Tensor]): shape ``(K,)`` each, what the weighting returned besides its weights in the
            previous step; empty at the first step, and for a weighting that remembers nothing.
    """

    batch: RewardBatch
    statistics: ObjectiveStatistics
    options: Options
    step: int = 0
    previous: Tensor | None = None
    gram: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def moments(self) -> Moments:
        """Over the whole batch, shape ``(K,)``, or per group, ``(G, K)``, depending on ``options.over``."""
        if self.options.over == "batch":
            return Moments(self.statistics.mean, self.statistics.std)
        return group_moments(self.batch)


def group_moments(batch: RewardBatch) -> Moments:
    """Moments per group: shape ``(G, K)``."""
    none = batch.group_count == 0
    mean = batch.group_min.masked_fill(none, torch.nan) + batch.group_sum_above_min / batch.group_count.clamp(min=1)
    return Moments(mean, batch.group_std.masked_fill(none, torch.nan))
