"""The registry of methods: each is a weighting and an aggregation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from saw import aggregation, weighting
from saw.batch import RewardBatch
from saw.options import Profile
from saw.statistics import ObjectiveStatistics

Weighting = Callable[[ObjectiveStatistics, Profile], Tensor]
Aggregation = Callable[[RewardBatch, Tensor, Profile], Tensor]


@dataclass(frozen=True)
class Method:
    """A named pair.

    Attributes:
        weighting (Weighting): how much each objective counts.
        aggregation (Aggregation): how the objectives become one advantage.
        needs_minima (bool): whether the weighting reads the CV, which needs each objective's minimum.
    """

    weighting: Weighting
    aggregation: Aggregation
    needs_minima: bool = False


METHODS: dict[str, Method] = {
    "grpo": Method(weighting.equal, aggregation.sum_then_normalise),
    "gdpo": Method(weighting.equal, aggregation.normalise_then_sum),
    "saw_grpo": Method(weighting.stage_aware, aggregation.sum_then_normalise, needs_minima=True),
    "saw_gdpo": Method(weighting.stage_aware, aggregation.normalise_then_sum, needs_minima=True),
}


def get_method(name: str) -> Method:
    """Look a method up by its name.

    Raises:
        ValueError: for a name that is not registered; the message lists those that are.
    """
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        raise ValueError(f"method is {name!r}; allowed are {', '.join(METHODS)}") from None
