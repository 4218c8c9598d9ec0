"""What a run left behind: its metrics, its configuration, its samples.

The trainer logs ``metrics.jsonl``, one JSON object a step, with the names of :mod:`saw.verl.metrics`, and beside it
``run.json`` (:mod:`saw.verl.record`) and ``val_samples.jsonl`` (:mod:`saw.verl.samples`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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


#: Last parts of the settings that say which of several runs this is, and where, but not what is compared.
_IDENTITY = {
    *("seed", "method", "experiment_name", "project_name", "default_local_dir", "path", "logger"),
    *("train_files", "val_files", "rollout_data_dir", "cache", "faults"),
    *("total_training_steps", "save_freq", "resume_mode"),
}


def _identifies(key: str) -> bool:
    """``ray_kwargs`` holds the environment, with the command and the place of the log."""
    return key.startswith("ray_kwargs.") or key.rpartition(".")[2] in _IDENTITY


@dataclass(frozen=True)
class LoggedRun:
    """A folder with a training's ``metrics.jsonl``.

    Attributes:
        folder (Path): the folder.
        history (History): the metrics of its training steps.
        validation (Mapping[int, Mapping[str, float]]): step -> the metrics of its validation.
        record (Mapping[str, Any]): its ``run.json``; empty where there is none.
    """

    folder: Path
    history: History
    validation: Mapping[int, Mapping[str, float]]
    record: Mapping[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, flat: ``{"saw.method": "grpo", ...}``."""
        return dict(_flat(self.record.get("config", {})))

    @property
    def method(self) -> str:
        """What it was trained with; the folder's name where no record says so."""
        return str(self.config.get("saw.method", self.folder.name))

    @property
    def seed(self) -> int | None:
        """The seed of the data's order and of the rollouts."""
        return self.config.get("data.seed")

    def samples(self) -> list[dict[str, Any]]:
        """The validation's sampled answers with their rewards."""
        path = self.folder / "val_samples.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_run(folder: Path) -> LoggedRun:
    """Read a run's folder, or the ``metrics.jsonl`` in it.

    Raises:
        FileNotFoundError: if there is no ``metrics.jsonl``.
        ValueError: if it was not written by SAW's trainer.
    """
    path = folder / "metrics.jsonl" if folder.is_dir() else folder
    if not path.exists():
        raise FileNotFoundError(f"{folder}: expected the folder of a training, with a metrics.jsonl in it")
    validation = {
        step: {name: _number(value) for name, value in data.items() if name.startswith("saw-val/")}
        for step, data in metrics_file.read(path).items()
    }
    record = path.parent / "run.json"
    return LoggedRun(
        folder=path.parent,
        history=read_history(path),
        validation={step: data for step, data in validation.items() if data},
        record=json.loads(record.read_text()) if record.exists() else {},
    )


def differences(runs: Sequence[LoggedRun]) -> dict[str, list[Any]]:
    """The settings in which runs differ, but for what names them: key -> a value for each run, None where absent."""
    keys = dict.fromkeys(key for run in runs for key in run.config if not _identifies(key))
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def grouped(runs: Sequence[LoggedRun]) -> dict[str, list[LoggedRun]]:
    """Runs that differ in their seed only, under one label: the method and the settings in which the groups differ."""
    differing = differences(runs)
    groups: dict[str, list[LoggedRun]] = {}
    for place, run in enumerate(runs):
        own = [f"{key.rpartition('.')[2]}={row[place]}" for key, row in differing.items() if run.record]
        groups.setdefault(", ".join([run.method, *own]), []).append(run)
    return groups


def objectives_of(histories: Iterable[History]) -> list[str]:
    """Every objective of several runs, in the order in which they come."""
    return list(dict.fromkeys(name for history in histories for name in history.objectives))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
