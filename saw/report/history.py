"""Reads what a run recorded: its metrics, its configuration, its samples.

The trainer logs ``metrics.jsonl``, one JSON object per step, with the names of :mod:`saw.verl.step_metrics`, and
beside it ``run.json`` (:mod:`saw.records.run_info`) and ``val_samples.jsonl`` (:mod:`saw.records.validation_samples`).
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

from saw.records import metrics_file
from saw.records.files import json_lines
from saw.report.tables import markdown

PREFIX = "saw/"
#: The log that the trainer writes into a run's folder.
LOG = "metrics.jsonl"


class NoSteps(ValueError):
    """A log without a training step of SAW's trainer."""


@dataclass(frozen=True)
class History:
    """The metrics of one run.

    Attributes:
        steps (tuple[int, ...]): the logged training steps.
        objectives (tuple[str, ...]): names, in the order of the configuration.
        columns (Mapping[str, tuple[float, ...]]): metric -> one value per step; NaN where it is absent.
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
        NoSteps: if it holds no training step of SAW's trainer.
        ValueError: if a line is broken; the message names the file and the line.
    """
    return _history(path, metrics_file.read(path))


def _history(path: Path, logged: Mapping[int, Mapping[str, Any]]) -> History:
    rows = {step: data for step, data in logged.items() if any(key.startswith(PREFIX) for key in data)}
    if not rows:
        what = "no training step is logged in it" if logged else "it is empty"
        raise NoSteps(f"{path}: {what} (no metric starts with {PREFIX!r}); was it written by SAW's trainer?")
    names = list(dict.fromkeys(key for row in rows.values() for key in row))
    columns = {name: tuple(_number(row.get(name)) for row in rows.values()) for name in names}
    return History(tuple(rows), tuple(_objectives(names)), columns)


def _objectives(names: Iterable[str]) -> list[str]:
    return [name[len(PREFIX) : -len("/mean")] for name in names if name.startswith(PREFIX) and name.endswith("/mean")]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def step_line(step: int, metrics: Mapping[str, float]) -> str:
    """One readable line per step: each objective's mean and weight, and the time."""
    parts = [
        f"{name} {_number(metrics[f'{PREFIX}{name}/mean']):6.3f} "
        f"(weight {_number(metrics.get(f'{PREFIX}{name}/weight')):.2f})"
        for name in _objectives(metrics)
    ]
    return f"step {step:3d}  " + "  ".join(parts) + f"  {_number(metrics.get('timing_s/step')):5.1f} s"


def summary_table(histories: Mapping[str, History]) -> str:
    """Markdown table: for each run and objective the mean reward at the first and last step, and the best."""
    rows = []
    for label, history in histories.items():
        for objective in history.objectives:
            means = history.of(objective, "mean")
            best = int(np.nanargmax(means)) if not all(map(math.isnan, means)) else 0
            numbers = (f"{value:.3f}" for value in (means[0], means[-1], means[best]))
            rows.append([label, objective, *numbers, str(history.steps[best])])
    return markdown(["method", "objective", "first", "last", "best", "at step"], rows, left=2)


#: Config keys (last part) that identify a run; ignored when runs are compared.
_IDENTITY = {
    *("seed", "method", "experiment_name", "project_name", "default_local_dir", "path", "logger"),
    *("train_files", "val_files", "rollout_data_dir", "cache", "faults"),
    *("total_training_steps", "save_freq", "resume_mode"),
}


def _identifies(key: str) -> bool:
    """Whether a key identifies a run; ``ray_kwargs`` does, as it holds the command and the path of the log."""
    return key.startswith("ray_kwargs.") or key.rpartition(".")[2] in _IDENTITY


@dataclass(frozen=True)
class LoggedRun:
    """A folder with a training's ``metrics.jsonl``.

    Attributes:
        folder (Path): the folder.
        history (History): the metrics of its training steps.
        validation (Mapping[int, Mapping[str, float]]): step -> the metrics of its validation.
        info (Mapping[str, Any]): its ``run.json``; empty if there is none.
        file (str): name of the log in the folder.
    """

    folder: Path
    history: History
    validation: Mapping[int, Mapping[str, float]]
    info: Mapping[str, Any]
    file: str = LOG

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, flat: ``{"saw.method": "grpo", ...}``."""
        return dict(flat(self.info.get("config", {})))

    @property
    def method(self) -> str:
        """The method it was trained with; without ``run.json``, the name of the folder, or of a log other than LOG."""
        name = self.folder.name if self.file == LOG else Path(self.file).stem
        return str(self.config.get("saw.method", name))

    @property
    def seed(self) -> int | None:
        """The seed of the data order and of the rollouts."""
        return self.config.get("data.seed")

    @property
    def total_steps(self) -> int | None:
        """The planned number of steps; None without ``run.json``."""
        return self.info.get("total_steps")

    def samples(self) -> list[dict[str, Any]]:
        """The sampled responses of the validation with their rewards; broken lines are left out."""
        return [sample for _, sample in self._samples if _is_sample(sample)]

    def broken_samples(self) -> list[int]:
        """The line numbers in ``val_samples.jsonl`` that hold no sample, for example after a killed training."""
        return [number for number, sample in self._samples if not _is_sample(sample)]

    @cached_property
    def _samples(self) -> list[tuple[int, Any]]:
        path = self.folder / "val_samples.jsonl"
        return list(json_lines(path)) if path.is_file() else []


def _is_sample(sample: Any) -> bool:
    if not isinstance(sample, dict) or not isinstance(rewards := sample.get("rewards"), dict):
        return False
    if "step" not in sample or not all(isinstance(sample.get(name), str) for name in ("input", "output")):
        return False
    return all(value is None or isinstance(value, int | float) for value in rewards.values())


def read_run(folder: Path) -> LoggedRun:
    """Read a run's folder, or the log in it.

    Raises:
        FileNotFoundError: if there is no log.
        NoSteps: if it holds no training step of SAW's trainer.
        ValueError: if the log or ``run.json`` is broken; the message names the file.
    """
    path = folder / LOG if folder.is_dir() else folder
    if path in metrics_file.parts(path.with_name(LOG)):
        path = path.with_name(LOG)  # all parts are read together
    if not metrics_file.exists(path):
        raise FileNotFoundError(f"{folder}: expected the folder of a training, with a {LOG} in it")
    logged = metrics_file.read(path)
    validation = {
        step: {name: _number(value) for name, value in data.items() if name.startswith("saw-val/")}
        for step, data in logged.items()
    }
    return LoggedRun(
        folder=path.parent,
        history=_history(path, logged),
        validation={step: data for step, data in validation.items() if data},
        info=_read_info(path.parent / "run.json"),
        file=path.name,
    )


def _read_info(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        info = json.loads(path.read_bytes())
    except ValueError as fault:
        raise ValueError(f"{path}: not valid JSON: {fault}; the report needs it to know what was trained") from fault
    parts = {"run.json": info} | ({key: info.get(key, {}) for key in _SECTIONS} if isinstance(info, dict) else {})
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ValueError(f"{path}: {name} is {str(part)[:80]!r}; expected an object")
    if type(info.get("total_steps", 1)) is not int:
        raise ValueError(f"{path}: total_steps is {info['total_steps']!r}; expected a whole number")
    return info


#: The sections of a ``run.json``, besides ``total_steps``.
_SECTIONS = ("config", "ranges", "provenance")


def names_of(runs: Sequence[LoggedRun]) -> list[str]:
    """A unique name for each run: its folder's, with as many parent folders as needed."""
    places = [(run.folder.resolve() / ("" if run.file == LOG else run.file)).parts for run in runs]

    def name(place: tuple[str, ...]) -> str:
        unique = (n for n in range(1, len(place)) if sum(other[-n:] == place[-n:] for other in places) == 1)
        return "/".join(place[-next(unique, len(place)) :])

    return [name(place) for place in places]


def differences(runs: Sequence[LoggedRun]) -> dict[str, list[Any]]:
    """The settings in which runs differ, except those that identify a run: key -> one value per run, None if absent.

    A run without a ``run.json`` has no settings to compare.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if not _identifies(key))
    described = [run for run in runs if run.info]
    first = {key: described[0].config.get(key) for key in keys}
    differing = [key for key in keys if any(run.config.get(key) != first[key] for run in described)]
    return {key: [run.config.get(key) for run in runs] for key in differing}


def grouped(runs: Sequence[LoggedRun]) -> dict[str, list[LoggedRun]]:
    """Runs that differ only in their seed, under one label: the method and the settings in which the groups differ."""
    differing = differences(runs)
    groups: dict[str, list[LoggedRun]] = {}
    for place, run in enumerate(runs):
        own = [f"{key.rpartition('.')[2]}={row[place]}" for key, row in differing.items() if run.info]
        groups.setdefault(", ".join([run.method, *own]), []).append(run)
    return groups


def by_seed(runs: Sequence[LoggedRun]) -> list[list[LoggedRun]]:
    """Runs of the same seed together; a run whose seed is unknown is on its own."""
    seeds: dict[object, list[LoggedRun]] = {}
    for place, run in enumerate(runs):
        seeds.setdefault(("unknown", place) if run.seed is None else run.seed, []).append(run)
    return list(seeds.values())


def objectives_of(histories: Iterable[History]) -> list[str]:
    """Every objective of several runs, in order of first appearance."""
    return list(dict.fromkeys(name for history in histories for name in history.objectives))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by their keys joined with dots."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, value
