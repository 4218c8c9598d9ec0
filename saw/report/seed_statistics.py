"""Statistics over seeds: intervals, paired tests, effect sizes, times to a threshold, Pareto fronts.

Every result carries its n, the number of values behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95
Name = TypeVar("Name")


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean (float): the mean; the median, if from :func:`bootstrap_median`; NaN without values.
        low (float): lower end of the bootstrap interval; NaN for fewer than two values.
        high (float): upper end.
        n (int): number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return "none"
        if math.isnan(self.low):
            return f"{self.mean:z.3f} (n = {self.n})"
        return f"{self.mean:z.3f} [{self.low:z.3f}, {self.high:z.3f}] (n = {self.n})"


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean and its 95 % bootstrap interval (bias-corrected and accelerated), ignoring NaN.

    Args:
        values: one per seed; NaN if missing.
        seed (int): of the resampling.
    """
    return _bootstrap(np.mean, "BCa", values, seed)


def bootstrap_median(values: ArrayLike, seed: int = 0) -> Interval:
    """Median and its 95 % bootstrap interval (percentiles), ignoring NaN; robust to a single outlier.

    Args:
        values: NaN if missing.
        seed (int): of the resampling.
    """
    return _bootstrap(np.median, "percentile", values, seed)


def _bootstrap(statistic: Callable[..., Any], method: str, values: ArrayLike, seed: int) -> Interval:
    present = _present(values)
    if len(present) < 2:
        return Interval(float(present.mean()) if len(present) else math.nan, math.nan, math.nan, len(present))
    centre = float(statistic(present))
    if _is_constant(present):
        return Interval(centre, centre, centre, len(present))
    found = stats.bootstrap(
        (present,), statistic, confidence_level=LEVEL, method=method, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(centre, float(found.low), float(found.high), len(present))


@dataclass(frozen=True)
class PairedTest:
    """A method against a baseline on the same seeds.

    Attributes:
        difference (Interval): method minus baseline.
        p (float): two-sided, paired t-test; NaN for fewer than two pairs, or if all differences are equal.
        p_corrected (float): Holm-corrected over all comparisons made together.
        effect (float): Cohen's d of the differences, their mean over their standard deviation.
    """

    difference: Interval
    p: float
    p_corrected: float
    effect: float


def paired_tests(differences: Mapping[Name, ArrayLike]) -> dict[Name, PairedTest]:
    """Test comparisons that are made together, with Holm's correction.

    Args:
        differences (Mapping): comparison -> method minus baseline, one value per common seed; NaN if missing.
    """
    gaps = {name: _present(values) for name, values in differences.items()}
    p = {name: _paired_p(gap) for name, gap in gaps.items()}
    tested = [name for name in p if not math.isnan(p[name])]
    corrected = dict.fromkeys(p, math.nan)
    if tested:
        corrected |= dict(zip(tested, multipletests([p[name] for name in tested], method="holm")[1], strict=True))
    return {
        name: PairedTest(bootstrap_mean(gap), p[name], float(corrected[name]), _effect(gap))
        for name, gap in gaps.items()
    }


def equivalence(differences: ArrayLike, margin: float) -> tuple[Interval, float]:
    """Two one-sided paired t-tests (TOST): whether the mean difference lies within a margin that was set beforehand.

    Args:
        differences: first minus second, one per seed; NaN if missing.
        margin (float): largest difference that would not matter, above 0.

    Returns:
        tuple[Interval, float]: the difference, and p; below 0.05 the two are equivalent. If all differences are equal,
        p is 0 or 1.
    """
    gap = _present(differences)
    interval = bootstrap_mean(gap)
    if len(gap) < 2:
        return interval, math.nan
    error = float(stats.sem(gap))
    if _is_constant(gap):
        return interval, 0.0 if abs(interval.mean) < margin else 1.0
    over = stats.t.sf((interval.mean + margin) / error, len(gap) - 1)
    under = stats.t.cdf((interval.mean - margin) / error, len(gap) - 1)
    return interval, float(max(over, under))


def steps_to(steps: Sequence[int], values: Sequence[float], threshold: float, window: int = 3) -> float:
    """The first step at which the mean of the last ``window`` values reaches a threshold; infinite if none does.

    Args:
        steps (Sequence[int]): training steps.
        values (Sequence[float]): one per step; NaN is left out of its window.
        threshold (float): to be reached from below.
        window (int): number of steps averaged, so that one lucky batch does not count.
    """
    if len(values) < window:
        return math.inf
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(values, dtype=float), window)
    present = ~np.isnan(windows)
    means = np.where(present, windows, 0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    reached = np.flatnonzero(present.any(axis=1) & (means >= threshold))
    return float(steps[reached[0] + window - 1]) if len(reached) else math.inf


def area_per_step(steps: Sequence[int], values: Sequence[float]) -> float:
    """Area under the curve (trapezoids) from the first step to the last, divided by the steps between them.

    This is the curve's mean height. It is not the mean of the values: the first and the last count half.

    Args:
        steps (Sequence[int]): training steps, increasing.
        values (Sequence[float]): one per step; a gap of NaN is bridged by a straight line.

    Returns:
        float: the value itself if there is only one; NaN if there is none.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if len(x) < 2:
        return float(y[0]) if len(y) else math.nan
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def pareto_front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """The names of the points that no other point dominates; more is better.

    Equal points are either all on the front or none of them. Values that differ only by rounding, by 1e-12 of the
    objective's largest, are equal.
    """
    names = list(points)
    values = np.array([points[name] for name in names], dtype=float)
    largest = np.abs(values).max(axis=0, initial=0.0)
    values = np.round(values / np.where(largest > 0, largest, 1.0), 12)
    best = moocore.is_nondominated(values, maximise=True, keep_weakly=True)
    return [name for name, kept in zip(names, best, strict=True) if kept]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume between the points and a reference point that all of them should exceed; more is better.

    Args:
        points: shape ``(P, K)``, K of 2 or 3 in practice.
        reference: K values, for example each objective's minimum. A point below it in any objective adds nothing.
    """
    kept = [point for point in points if all(value > low for value, low in zip(point, reference, strict=True))]
    if not kept:
        return 0.0
    return float(moocore.hypervolume(np.array(kept, dtype=float), ref=np.array(reference, dtype=float), maximise=True))


def _present(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=float)
    return array[~np.isnan(array)]


def _is_constant(values: NDArray[np.float64]) -> bool:
    """Whether all are equal up to rounding: then no test is meaningful."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _paired_p(gap: NDArray[np.float64]) -> float:
    if len(gap) < 2 or _is_constant(gap):
        return math.nan
    return float(stats.ttest_1samp(gap, 0.0).pvalue)


def _effect(gap: NDArray[np.float64]) -> float:
    return float(gap.mean() / gap.std(ddof=1)) if len(gap) > 1 and not _is_constant(gap) else math.nan
