"""What the parts of the tabular study share: their result, and how numbers with intervals are shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recipes.study.tabular_world import Objective, Trajectories, World
from saw.report.seed_statistics import Interval

#: An objective counts as learned when its probability of being right reaches this.
THRESHOLD = 0.9
#: Two objectives that are learned at different speeds, and stay noisy once learned.
BASE = World((Objective("early", options=2, noise=0.6), Objective("late", options=20, noise=0.6)), steps=250)
#: An objective that can be learned; others are tried together with it.
GOOD = Objective("good", 8, noise=0.2)


@dataclass(frozen=True)
class Part:
    """One question's answer.

    Attributes:
        rows (list[dict]): for the CSV.
        table (str): Markdown.
        text (str): explains the question and the numbers.
    """

    rows: list[dict]
    table: str
    text: str


def steps_to(found: Trajectories, objective: int) -> np.ndarray:
    """Steps to the threshold, one per seed."""
    return found.reached(objective, THRESHOLD).numpy()


def exact_weights(world: World, right: Tensor) -> Tensor:
    """SAW's weights for an infinite batch, from the policy's probabilities: shape as ``right``, ``(..., K)``."""
    cv = []
    for k, objective in enumerate(world.objectives):
        p, noise = right[..., k], objective.noise
        mean = p * (1 - noise / 2) + objective.offset
        square = p * (1 - noise + noise**2 / 3) + 2 * objective.offset * p * (1 - noise / 2) + objective.offset**2
        cv.append((square - mean**2).clamp(min=0).sqrt() / mean)
    values = torch.stack(cv, dim=-1)
    return values / values.sum(dim=-1, keepdim=True)


def show(interval: Interval, digits: int = 1) -> str:
    """Mean and interval, as in ``1.0 [0.9, 1.1]``."""
    if np.isnan(interval.low):
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def columns(name: str, interval: Interval) -> dict[str, float]:
    """Mean and interval as three columns of a CSV."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def line(axis, values: Tensor, label: str, colour: str) -> None:
    """Draw the mean over seeds, and 5 to 95 % of them."""
    steps = np.arange(1, values.shape[1] + 1)
    low, high = np.quantile(values.numpy(), [0.05, 0.95], axis=0)
    axis.plot(steps, values.mean(dim=0).numpy(), color=colour, label=label, linewidth=1.4)
    axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.grid(alpha=0.25)
