"""Chooses the runs that a report uses: each training once, and none that ended early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saw.report.history import LoggedRun, by_seed, grouped, names_of


@dataclass(frozen=True)
class Selection:
    """Runs, and what a reader must know about how they were chosen.

    Attributes:
        runs (Mapping[str, LoggedRun]): unique name -> training, each training once.
        groups (Mapping[str, Sequence[LoggedRun]]): label -> the runs that tables and curves are made from.
        notes (Sequence[tuple[str, str]]): name of a run or label, and a note about it.
    """

    runs: Mapping[str, LoggedRun]
    groups: Mapping[str, Sequence[LoggedRun]]
    notes: Sequence[tuple[str, str]]


def select(given: Sequence[LoggedRun]) -> Selection:
    """Choose among runs.

    A run that is given twice counts once. So does a copy: a run with the same method, settings and seed whose logged
    metrics equal the other's, or its first steps. A run that ended before others of its group is left out, because it
    would be averaged over different steps. Trainings with the same seed but different metrics are kept; their mean
    counts as one seed (:func:`saw.report.summary.of_seeds`).
    """
    unique = list({(run.folder.resolve(), run.file): run for run in given}.values())
    name = dict(zip(map(id, unique), names_of(unique), strict=True))
    groups: dict[str, list[LoggedRun]] = {}
    notes: list[tuple[str, str]] = []
    for label, runs in grouped(unique).items():
        kept: list[LoggedRun] = []
        for run in sorted(runs, key=lambda run: -len(run.history.steps)):  # longest first
            original = next((other for other in kept if _is_copy(run, other)), None)
            if original is None:
                kept.append(run)
            else:
                remark = f"a copy of {name[id(original)]} by its metrics and seed; it is left out"
                notes.append((name[id(run)], remark))
        last = max(run.history.steps[-1] for run in kept)
        total = max([last, *(run.total_steps or 0 for run in kept)])
        kept = [run for run in runs if any(run is other for other in kept)]  # back in the given order
        groups[label] = [run for run in kept if run.history.steps[-1] == last]
        for run in kept:
            if (end := run.history.steps[-1]) < total:
                out = (
                    "" if end == last else f"; it is left out of the tables and curves, others of {label} lasted longer"
                )
                notes.append((name[id(run)], f"ended at step {end} of {total}{out}"))
        for same in by_seed(groups[label]):
            if len(same) > 1:
                trained = " and ".join(name[id(run)] for run in same)
                notes.append((label, f"{trained} have the same seed, {same[0].seed}; their mean counts as one"))
    return Selection({name[id(run)]: run for run in unique}, groups, notes)


def _is_copy(run: LoggedRun, longer: LoggedRun) -> bool:
    """Whether a run's metrics equal those of another, or its first steps."""
    steps = run.history.steps
    if run.seed != longer.seed or steps != longer.history.steps[: len(steps)]:
        return False
    return all(
        value == other or math.isnan(value)  # a resumed training may have validated again at its last step
        for name, values in run.history.columns.items()
        for value, other in zip(values, longer.history.columns.get(name, (math.nan,) * len(steps)), strict=False)
    )
