"""The numbers of a report: final rewards, times to a threshold, tests against a baseline, Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saw.report.comparison import (
    PairedTest,
    bootstrap_mean,
    hypervolume,
    mean_over_steps,
    paired_tests,
    pareto_front,
    steps_to,
)
from saw.report.history import LoggedRun, objectives_of

#: Last steps whose mean is a run's final value.
LAST = 5


@dataclass(frozen=True)
class Table:
    """A table of words and numbers.

    Attributes:
        title (str): what it is.
        header (tuple[str, ...]): of the columns.
        rows (tuple[tuple[str, ...], ...]): the cells.
        left (int): columns that hold words.
        note (str): what a reader must know.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    note: str = ""


def final(run: LoggedRun, objective: str, what: str = "mean") -> float:
    """Mean over the last :data:`LAST` steps of a training metric; NaN where it is absent."""
    if objective not in run.history.objectives:
        return math.nan
    values = np.asarray(run.history.of(objective, what)[-LAST:], dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def summary(groups: Mapping[str, Sequence[LoggedRun]], thresholds: Mapping[str, float]) -> Table:
    """One row a method and objective."""
    rows = []
    for label, runs in groups.items():
        for objective in objectives_of(run.history for run in runs):
            curves = [
                (run.history.steps, run.history.of(objective, "mean"))
                for run in runs
                if objective in run.history.objectives
            ]
            cells = [
                str(bootstrap_mean([final(run, objective) for run in runs])),
                str(bootstrap_mean([over_all_steps(run, objective) for run in runs])),
            ]
            if thresholds:
                cells.append(_reached(curves, thresholds.get(objective)))
            rows.append((label, objective, *cells))
    header = ["method", "objective", f"mean reward, last {LAST} steps", "mean over all steps"]
    if thresholds:
        header.append("steps to threshold: " + ", ".join(f"{name} {value:g}" for name, value in thresholds.items()))
    note = "Brackets: 95 % bootstrap interval of the mean over seeds; n is the number of seeds."
    return Table("Rewards", tuple(header), tuple(rows), left=2, note=note)


def over_all_steps(run: LoggedRun, objective: str) -> float:
    """Mean over all steps of an objective's mean reward: higher for what is learned sooner; NaN where it is absent."""
    if objective not in run.history.objectives:
        return math.nan
    return mean_over_steps(run.history.steps, run.history.of(objective, "mean"))


def tests(groups: Mapping[str, Sequence[LoggedRun]], baseline: str) -> Table:
    """Every method against the baseline, paired by seed: each objective's final reward and its mean over all steps.

    Raises:
        KeyError: if no run has the baseline's label; the message lists the labels.
    """
    if baseline not in groups:
        raise KeyError(f"--baseline {baseline}: no such method; there are {', '.join(groups)}")
    objectives = objectives_of(run.history for runs in groups.values() for run in runs)
    compared = [(label, objective) for label in groups if label != baseline for objective in objectives]
    found: dict[tuple[str, str, str], PairedTest] = {}
    for measure, value in ((f"last {LAST} steps", final), ("all steps", over_all_steps)):
        gaps = {}
        for label, objective in compared:
            base = {run.seed: value(run, objective) for run in groups[baseline] if run.seed is not None}
            own = {run.seed: value(run, objective) for run in groups[label] if run.seed is not None}
            gaps[label, objective] = {seed: own[seed] - base[seed] for seed in own.keys() & base.keys()}
        # One family of comparisons: Holm corrects over methods and objectives together.
        seeds = {seed for gap in gaps.values() for seed in gap}
        keyed = {f"{label}\0{objective}": gap for (label, objective), gap in gaps.items()}
        family = paired_tests(dict.fromkeys(seeds, 0.0), keyed)
        found |= {(*pair, measure): family["\0".join(pair)] for pair in gaps}
    rows = tuple(
        (*place, str(test.difference), _number(test.p), _number(test.p_corrected), _effect(test.effect))
        for place, test in sorted(found.items(), key=lambda item: compared.index(item[0][:2]))
    )
    header = ("method", "objective", "mean over", f"less {baseline}", "p", "p, Holm", "Cohen's d")
    note = "Two-sided paired t-test over common seeds; Holm over all rows with the same steps."
    return Table(f"Against {baseline}", header, rows, left=3, note=note)


def front(groups: Mapping[str, Sequence[LoggedRun]]) -> Table | None:
    """Pareto front of the methods' mean final rewards, and each one's hypervolume; None but for 2 or 3 objectives."""
    objectives = objectives_of(run.history for runs in groups.values() for run in runs)
    if len(objectives) not in (2, 3):
        return None
    points = {
        label: [float(np.mean([final(run, objective) for run in runs])) for objective in objectives]
        for label, runs in groups.items()
    }
    points = {label: point for label, point in points.items() if not np.isnan(point).any()}
    if not points:
        return None
    reference = [_minimum(groups, objective) for objective in objectives]
    best = pareto_front(points)
    rows = tuple(
        (
            label,
            "yes" if label in best else "no",
            *(f"{value:.3f}" for value in point),
            f"{hypervolume([point], reference):.3f}",
            str(len(groups[label])),
        )
        for label, point in points.items()
    )
    where = ", ".join(f"{name} {low:g}" for name, low in zip(objectives, reference, strict=True))
    together = hypervolume(list(points.values()), reference)
    note = f"Hypervolume above ({where}); of all methods together {together:.3f}."
    return Table("Pareto front", ("method", "on the front", *objectives, "hypervolume", "n"), rows, 2, note)


def _minimum(groups: Mapping[str, Sequence[LoggedRun]], objective: str) -> float:
    """The objective's stated minimum, or the smallest mean that was logged."""
    runs = [run for runs in groups.values() for run in runs if objective in run.history.objectives]
    stated = [run.record["ranges"][objective][0] for run in runs if objective in run.record.get("ranges", {})]
    stated = [low for low in stated if low is not None]
    return min(stated) if stated else float(min(np.nanmin(run.history.of(objective, "mean")) for run in runs))


def _reached(curves: Sequence[tuple[Sequence[int], Sequence[float]]], threshold: float | None) -> str:
    if threshold is None:
        return ""
    steps = [steps_to(*curve, threshold) for curve in curves]
    median = float(np.median(steps))
    reached = sum(map(math.isfinite, steps))
    return f"{'not reached' if math.isinf(median) else f'median {median:g}'} ({reached} of {len(steps)})"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _effect(value: float) -> str:
    """Cohen's d; a difference that is nothing but rounding is 0."""
    return _number(value if math.isnan(value) or abs(value) > 1e-9 else 0.0)
