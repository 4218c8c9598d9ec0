"""Figures from logs, in the style of the paper's: reward curves by family of methods, CV and weights, cost.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; each method also has its own marker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saw.report.history import PREFIX, History, LoggedRun, by_seed, objectives_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Steps, mean and standard error: arrays of one length.
Curve = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
#: Training metric of an objective -> the axis' label.
ROWS = {"mean": "mean reward", "cv": "CV", "weight": "weight"}
#: verl's timings per step -> label.
COSTS = {
    "timing_s/gen": "generation and rewards",
    "timing_s/old_log_prob": "old log-probabilities",
    "timing_s/ref": "reference policy",
    "timing_s/adv": "advantages",
    "timing_s/update_actor": "update",
    "timing_s/update_weights": "weights to vLLM",
}


def plot_curves(histories: Mapping[str, History], path: Path, title: str = "") -> None:
    """Draw each objective's mean reward, CV and weight over the steps, one line per run, to a PNG."""
    objectives = objectives_of(histories.values())
    with figure_of(len(ROWS), len(objectives), (4.6 * len(objectives), 7.2)) as (figure, axes):
        for row, (what, label) in enumerate(ROWS.items()):
            for column, objective in enumerate(objectives):
                axis = axes[row][column]
                for place, (name, history) in enumerate(histories.items()):
                    if objective in history.objectives:
                        axis.plot(history.steps, history.of(objective, what), label=name, **_style(place))
                _finish(axis, objective if row == 0 else "", label if column == 0 else "", row == len(ROWS) - 1)
                if what == "weight":
                    axis.set_ylim(-0.03, 1.03)
        axes[0][0].legend(frameon=False)
        figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def plot_family(groups: Mapping[str, Sequence[LoggedRun]], rows: Mapping[str, str], path: Path, title: str) -> None:
    """Draw metrics of each objective, the mean over seeds with its standard error as a band; PNG and PDF.

    Args:
        groups (Mapping): label -> runs that differ only in their seed.
        rows (Mapping): training metric of an objective -> label of its row of axes.
        path (Path): without a suffix.
        title (str): of the figure; n is added.
    """
    objectives = objectives_of(run.history for runs in groups.values() for run in runs)
    with figure_of(len(rows), len(objectives), (4.6 * len(objectives), 2.6 * len(rows) + 0.6)) as (figure, axes):
        for row, (what, label) in enumerate(rows.items()):
            for column, objective in enumerate(objectives):
                axis = axes[row][column]
                for place, (name, runs) in enumerate(groups.items()):
                    steps, mean, error = over_seeds(runs, partial(logged, metric=f"{PREFIX}{objective}/{what}"))
                    style = _style(place)
                    seeds = len(by_seed(runs))
                    axis.plot(steps, mean, label=f"{name} (n = {seeds})", **style)
                    if seeds > 1:
                        axis.fill_between(steps, mean - error, mean + error, color=style["color"], alpha=0.2, lw=0)
                _finish(axis, objective if row == 0 else "", label if column == 0 else "", row == len(rows) - 1)
        axes[0][0].legend(frameon=False, fontsize=8)
        figure.suptitle(f"{title}; bands: standard error over seeds", fontsize=10)
        _save(figure, path)


def plot_cost(groups: Mapping[str, Sequence[LoggedRun]], path: Path) -> None:
    """Draw the time per step by part, the median over steps and runs, one bar per method; PNG and PDF."""
    with figure_of(1, 1, (7.2, 0.5 * len(groups) + 1.6)) as (figure, axes):
        axis = axes[0][0]
        left = np.zeros(len(groups))
        names = [f"{name} (n = {sum(len(run.history.steps) for run in runs)} steps)" for name, runs in groups.items()]
        for place, (metric, label) in enumerate(COSTS.items()):
            seconds = np.array([median_of(runs, metric) for runs in groups.values()])
            if seconds.any():
                axis.barh(names, seconds, left=left, color=COLOURS[place], label=label)
                left += seconds
        axis.invert_yaxis()
        axis.set_xlabel("seconds per step, medians")
        axis.grid(alpha=0.25, axis="x")
        if left.any():  # not every trainer logs these times
            figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
        _save(figure, path)


def median_of(runs: Sequence[LoggedRun], metric: str) -> float:
    """Median of a metric over all steps of several runs; 0 if none has it."""
    values = np.concatenate([np.asarray(run.history.columns.get(metric, ()), dtype=float) for run in runs])
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else 0.0


def logged(run: LoggedRun, metric: str) -> dict[int, float]:
    """Step -> a training metric, where it is logged."""
    values = run.history.columns.get(metric, ())
    return {step: value for step, value in zip(run.history.steps, values, strict=False) if value == value}


def over_seeds(runs: Sequence[LoggedRun], values: Callable[[LoggedRun], Mapping[int, float]]) -> Curve:
    """Steps that any run has, the mean over the seeds that have them, and its standard error (0 for one seed).

    Args:
        runs: of one method; runs with the same seed are averaged first.
        values: gives a run's values, step -> value.
    """
    rows: dict[int, list[float]] = {}
    for same in by_seed(runs):
        own: dict[int, list[float]] = {}
        for run in same:
            for step, value in values(run).items():
                own.setdefault(step, []).append(value)
        for step, found in own.items():
            rows.setdefault(step, []).append(fmean(found))
    steps = sorted(rows)
    error = [stdev(rows[step]) / len(rows[step]) ** 0.5 if len(rows[step]) > 1 else 0.0 for step in steps]
    return np.array(steps), np.array([fmean(rows[step]) for step in steps]), np.array(error)


def family(method: str) -> str:
    """Which of the paper's two families a method belongs to, if any."""
    return {"grpo": "GRPO-based", "gdpo": "GDPO-based"}.get(method.rpartition("_")[2], "other")


def draw_all(groups: Mapping[str, Sequence[LoggedRun]], folder: Path) -> list[Path]:
    """All figures of a report.

    Returns:
        list[Path]: the PNGs; each has a PDF beside it.
    """
    drawn = []
    for name in ("GRPO-based", "GDPO-based", "other"):
        own = {
            label: runs for label, runs in groups.items() if family(runs[0].method if runs[0].info else label) == name
        }
        if not own:
            continue
        slug = name.lower().replace("-", "_")
        for rows, what in (({"mean": "mean reward"}, "rewards"), ({"cv": "CV", "weight": "weight"}, "weights")):
            path = folder / f"{what}_{slug}"
            plot_family(own, rows, path, f"{name} methods")
            drawn.append(path.with_suffix(".png"))
    plot_cost(groups, folder / "cost")
    return [*drawn, folder / "cost.png"]


def _style(place: int) -> dict:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 3,
        "linewidth": 1.4,
    }


def _finish(axis: Axes, title: str, label: str, last: bool) -> None:
    axis.grid(alpha=0.25)
    axis.set_title(title)
    axis.set_ylabel(label)
    if last:
        axis.set_xlabel("training step")
        axis.locator_params(axis="x", integer=True)


@contextmanager
def figure_of(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes, ``axes[row][column]``, closed at the end of the block."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, squeeze=False, layout="constrained")
    try:
        yield figure, axes
    finally:
        plt.close(figure)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})  # reproducible files
