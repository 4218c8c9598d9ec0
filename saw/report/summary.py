"""The numbers of a report: final rewards, times to a threshold, tests against a baseline, Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saw.report import tables
from saw.report.history import LoggedRun, by_seed, objectives_of
from saw.report.seed_statistics import (
    PairedTest,
    area_per_step,
    bootstrap_mean,
    hypervolume,
    paired_tests,
    pareto_front,
    steps_to,
)

#: Number of last steps whose mean is a run's final value.
LAST = 5
#: Heading of :func:`area_under_curve`.
AREA = "area under the curve, per step"


@dataclass(frozen=True)
class Table:
    """A table of words and numbers.

    Attributes:
        title (str): of the table.
        header (tuple[str, ...]): of the columns.
        rows (tuple[tuple[str, ...], ...]): the cells.
        left (int): number of text columns, which come first.
        note (str): shown below it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    note: str = ""

    def section(self) -> str:
        """The table in Markdown, with its title as a heading and its note below."""
        parts = (f"## {self.title}", tables.markdown(self.header, self.rows, self.left), self.note)
        return "\n\n".join(part for part in parts if part)


def final(run: LoggedRun, objective: str, what: str = "mean") -> float:
    """Mean over the last :data:`LAST` steps of a training metric; NaN if it is absent."""
    if objective not in run.history.objectives:
        return math.nan
    return _mean(run.history.of(objective, what)[-LAST:])


def area_under_curve(run: LoggedRun, objective: str) -> float:
    """Area under an objective's mean reward, per step: higher if it is learned sooner; NaN if it is absent."""
    if objective not in run.history.objectives:
        return math.nan
    return area_per_step(run.history.steps, run.history.of(objective, "mean"))


def of_seeds(runs: Sequence[LoggedRun], value: Callable[[LoggedRun], float]) -> list[float]:
    """One value per seed: the mean over its trainings if there are several; NaN if none has a value."""
    return [_mean([value(run) for run in same]) for same in by_seed(runs)]


def _mean(values: Sequence[float]) -> float:
    present = [number for number in values if not math.isnan(number)]
    return float(np.mean(present)) if present else math.nan


def summary(groups: Mapping[str, Sequence[LoggedRun]], thresholds: Mapping[str, float]) -> Table:
    """One row per method and objective.

    Raises:
        KeyError: if no run has the objective of a threshold; the message lists the objectives.
    """
    known = objectives_of(run.history for runs in groups.values() for run in runs)
    for name, value in thresholds.items():
        if name not in known:
            raise KeyError(f"--threshold {name}={value:g}: no such objective; there are {', '.join(known)}")
    rows = []
    for label, runs in groups.items():
        for objective in objectives_of(run.history for run in runs):
            cells = [
                str(bootstrap_mean(of_seeds(runs, lambda run: final(run, objective)))),  # noqa: B023
                str(bootstrap_mean(of_seeds(runs, lambda run: area_under_curve(run, objective)))),  # noqa: B023
            ]
            if thresholds:
                cells.append(_reached(runs, objective, thresholds.get(objective)))
            rows.append((label, objective, *cells))
    header = ["method", "objective", f"mean reward, last {LAST} steps", AREA]
    if thresholds:
        header.append("steps to threshold: " + ", ".join(f"{name} {value:g}" for name, value in thresholds.items()))
    note = "Brackets: 95 % bootstrap interval of the mean over seeds; n is the number of seeds."
    return Table("Rewards", tuple(header), tuple(rows), left=2, note=" ".join([note, *_ended_early(groups)]))


def tests(groups: Mapping[str, Sequence[LoggedRun]], baseline: str) -> Table:
    """Every method against the baseline, paired by seed: each objective's final reward and the area under its curve.

    Raises:
        KeyError: if no run has the baseline's label, or all have it; the message lists the labels.
    """
    if baseline not in groups:
        raise KeyError(f"--baseline {baseline}: no such method; there are {', '.join(groups)}")
    if len(groups) == 1:
        raise KeyError(f"--baseline {baseline}: there is no other method to compare with it")
    objectives = objectives_of(run.history for runs in groups.values() for run in runs)
    compared = [(label, objective) for label in groups if label != baseline for objective in objectives]
    found: dict[tuple[str, str, str], PairedTest] = {}
    for measure, value in ((f"last {LAST} steps", final), (AREA, area_under_curve)):
        gaps = {}
        for label, objective in compared:
            base, own = (_seeded(groups[name], objective, value) for name in (baseline, label))
            gaps[label, objective, measure] = [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())]
        found |= paired_tests(gaps)  # Holm's correction covers methods and objectives together
    rows = tuple(
        (*place, str(test.difference), _number(test.p), _number(test.p_corrected), _effect(test.effect))
        for place, test in sorted(found.items(), key=lambda item: compared.index(item[0][:2]))
    )
    header = ("method", "objective", "measure", f"minus {baseline}", "p", "p, Holm", "Cohen's d")
    note = "Two-sided paired t-test over common seeds; Holm's correction over this table's rows with the same measure."
    note = " ".join([note, *_ended_early(groups)])
    return Table(f"Against {baseline}", header, rows, left=3, note=note)


def _seeded(runs: Sequence[LoggedRun], objective: str, value: Callable[[LoggedRun, str], float]) -> dict[int, float]:
    """Seed -> value; a run whose seed is unknown has no pair."""
    known = [run for run in runs if run.seed is not None]
    values = of_seeds(known, lambda run: value(run, objective))
    return {same[0].seed: found for same, found in zip(by_seed(known), values, strict=True) if same[0].seed is not None}


def _ended_early(groups: Mapping[str, Sequence[LoggedRun]]) -> list[str]:
    """A sentence on the methods that ended before the others, or before their planned last step."""
    ends = {label: max(run.history.steps[-1] for run in runs) for label, runs in groups.items()}
    asked = {label: max(run.total_steps or 0 for run in runs) for label, runs in groups.items()}
    total = max([*ends.values(), *asked.values()])
    early = [f"{label} at step {end} of {asked[label] or total}" for label, end in ends.items() if end < total]
    return [f"Not of the same length, or unfinished: {', '.join(early)}."] if early else []


def front(groups: Mapping[str, Sequence[LoggedRun]]) -> Table | None:
    """Pareto front of the methods' mean final rewards, and each one's hypervolume; None unless there are 2 or 3."""
    objectives = objectives_of(run.history for runs in groups.values() for run in runs)
    if len(objectives) not in (2, 3):
        return None
    everyone = {
        label: [_mean(of_seeds(runs, lambda run: final(run, objective))) for objective in objectives]  # noqa: B023
        for label, runs in groups.items()
    }
    points = {label: point for label, point in everyone.items() if not np.isnan(point).any()}
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
            str(len(by_seed(groups[label]))),
        )
        for label, point in points.items()
    )
    where = ", ".join(f"{name} {low:g}" for name, low in zip(objectives, reference, strict=True))
    together = hypervolume(list(points.values()), reference)
    note = [f"Hypervolume above ({where}); of all methods together {together:.3f}."]
    if absent := [label for label in everyone if label not in points]:
        note.append(f"Without a final reward of every objective: {', '.join(absent)}.")
    header = ("method", "on the front", *objectives, "hypervolume", "n")
    return Table("Pareto front", header, rows, 2, " ".join([*note, *_ended_early(groups)]))


def _minimum(groups: Mapping[str, Sequence[LoggedRun]], objective: str) -> float:
    """The objective's stated minimum, otherwise the smallest logged mean."""
    runs = [run for runs in groups.values() for run in runs if objective in run.history.objectives]
    stated = [run.info["ranges"][objective][0] for run in runs if objective in run.info.get("ranges", {})]
    stated = [low for low in stated if low is not None]
    return min(stated) if stated else float(min(np.nanmin(run.history.of(objective, "mean")) for run in runs))


def _reached(runs: Sequence[LoggedRun], objective: str, threshold: float | None) -> str:
    if threshold is None:
        return ""
    having = [run for run in runs if objective in run.history.objectives]
    steps = of_seeds(having, lambda run: steps_to(run.history.steps, run.history.of(objective, "mean"), threshold))
    median = float(np.median(steps))
    reached = sum(map(math.isfinite, steps))
    return f"{'not reached' if math.isinf(median) else f'median {median:g}'} ({reached} of {len(steps)})"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _effect(value: float) -> str:
    """Cohen's d; a difference that is only rounding counts as 0."""
    return _number(value if math.isnan(value) or abs(value) > 1e-9 else 0.0)
