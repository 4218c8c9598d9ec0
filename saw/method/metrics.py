"""The metrics of one training step, under the same names in every trainer."""

from __future__ import annotations

from collections.abc import Sequence

from saw.method.advantage import Advantage


def training_metrics(advantage: Advantage, names: Sequence[str]) -> dict[str, float]:
    """``saw/<objective>/{mean,std,min,max,cv,weight,proposed_weight,zero_spread,missing}`` of one step.

    The proposed weight is the method's, the weight is what smoothing and other options make of it. A value that does
    not exist (the mean of an objective that is missing for all samples) is NaN.

    Args:
        advantage (Advantage): of the step.
        names (Sequence[str]): of the objectives.
    """
    statistics = advantage.statistics
    columns = {
        "mean": statistics.mean,
        "std": statistics.std,
        "min": statistics.min,
        "max": statistics.max,
        "cv": statistics.cv,
        "weight": advantage.weights,
        "proposed_weight": advantage.proposed,
        "zero_spread": statistics.zero_spread,
        "missing": statistics.missing,
    }
    return {
        f"saw/{name}/{what}": float(value)
        for what, column in columns.items()
        for name, value in zip(names, column.tolist(), strict=True)
    }
