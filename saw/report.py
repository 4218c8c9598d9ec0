"""A run's per-objective metrics as a table and as curves.

Reads what the trainer logged (``metrics.jsonl``, one JSON object a step; names in :mod:`saw.verl.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saw import metrics_file

PREFIX = "saw/"


@dataclass(frozen=True)
class History:
    """The metrics of one run.

    Attributes:
        steps (tuple[int, ...]): the logged training steps.
        objectives (tuple[str, ...]): names, in the order of the configuration.
        columns (Mapping[str, tuple[float, ...]]): a value a step for each metric; NaN where it is absent.
    """

    steps: tuple[int, ...]
    objectives: tuple[str, ...]
    columns: Mapping[str, tuple[float, ...]]

    def of(self, objective: str, what: str) -> tuple[float, ...]:
        """One metric of one objective, for example ``of("format", "mean")``."""
        return self.columns[f"{PREFIX}{objective}/{what}"]


def read_history(path: Path) -> History:
    """Read a ``metrics.jsonl``.

    Raises:
        ValueError: if it holds no training step of SAW's trainer.
    """
    logged = metrics_file.read(path)
    rows = {step: data for step, data in logged.items() if any(key.startswith(PREFIX) for key in data)}
    if not rows:
        raise ValueError(f"{path} has no metric that starts with {PREFIX!r}; was it written by SAW's trainer?")
    names = list(dict.fromkeys(key for row in rows.values() for key in row))
    columns = {name: tuple(_number(row.get(name)) for row in rows.values()) for name in names}
    objectives = tuple(n[len(PREFIX) : -len("/mean")] for n in names if n.startswith(PREFIX) and n.endswith("/mean"))
    return History(tuple(rows), objectives, columns)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def step_line(step: int, metrics: Mapping[str, float]) -> str:
    """One readable line a step: each objective's mean and weight, and the time."""
    names = [n[len(PREFIX) : -len("/mean")] for n in metrics if n.startswith(PREFIX) and n.endswith("/mean")]
    parts = [
        f"{name} {_number(metrics[f'{PREFIX}{name}/mean']):6.3f} (weight {metrics[f'{PREFIX}{name}/weight']:.2f})"
        for name in names
    ]
    return f"step {step:3d}  " + "  ".join(parts) + f"  {_number(metrics.get('timing_s/step')):5.1f} s"


def summary_table(histories: Mapping[str, History]) -> str:
    """Markdown table: for each run and objective the mean reward at the first and last step, and the best."""
    lines = ["| method | objective | first | last | best | at step |", "|---|---|---:|---:|---:|---:|"]
    for label, history in histories.items():
        for objective in history.objectives:
            means = history.of(objective, "mean")
            best = int(np.nanargmax(means)) if not all(map(math.isnan, means)) else 0
            cells = f"{means[0]:.3f} | {means[-1]:.3f} | {means[best]:.3f} | {history.steps[best]}"
            lines.append(f"| {label} | {objective} | {cells} |")
    return "\n".join(lines)


def plot_curves(histories: Mapping[str, History], path: Path, title: str = "") -> None:
    """Draw each objective's mean reward, CV and weight over the steps, one line a run, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    objectives = _all_objectives(histories.values())
    rows = (("mean", "mean reward"), ("cv", "CV"), ("weight", "weight"))
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito: colour-blind safe
    markers = ["o", "s", "^", "D", "v", "P"]
    figure, axes = plt.subplots(
        len(rows),
        len(objectives),
        figsize=(4.6 * len(objectives), 7.2),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (what, label) in enumerate(rows):
        for column, objective in enumerate(objectives):
            axis = axes[row][column]
            for i, (name, history) in enumerate(histories.items()):
                if objective in history.objectives:
                    axis.plot(
                        history.steps,
                        history.of(objective, what),
                        color=colours[i % len(colours)],
                        marker=markers[i % len(markers)],
                        markersize=3,
                        linewidth=1.4,
                        label=name,
                    )
            axis.grid(alpha=0.25)
            if row == 0:
                axis.set_title(objective)
            if column == 0:
                axis.set_ylabel(label)
            if what == "weight":
                axis.set_ylim(-0.03, 1.03)
                axis.set_xlabel("training step")
                axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].legend(frameon=False)
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _all_objectives(histories: Iterable[History]) -> list[str]:
    return list(dict.fromkeys(name for history in histories for name in history.objectives))
