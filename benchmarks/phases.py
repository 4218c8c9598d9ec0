"""CPU seconds per phase of a training's steps, for a shared machine, where wall time misleads.

    python -m benchmarks.phases --out results/smollm2/phases.csv --setting padded [--seconds 600]     while it runs
    python -m benchmarks.phases --out results/smollm2/phases.csv --report-only

Follows the training that was started with the same SAW_RUNS. Ray shows in the title of the trainer's worker what it is
doing; each time the title changes, the CPU times of the worker and of vLLM's engine are recorded.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import psutil

from saw.report.tables import markdown

#: Title of the worker -> phase; between the titles vLLM generates.
PHASES = {
    "actor_rollout_compute_log_prob": "old log-probabilities",
    "actor_rollout_update_actor": "update",
    "actor_rollout_save_checkpoint": "checkpoint",
    "actor_rollout_update_weights": "weights to vLLM",
}
GENERATION = "generation"
COLUMNS = ("setting", "time", "phase", "trainer", "engine")


def sample() -> dict[str, object] | None:
    """The worker's phase, and CPU seconds of worker and engine; None if there is no such training."""
    found: dict[str, object] = {}
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
            part = "trainer" if "ray::WorkerDict" in title else "engine" if "VLLM::EngineCore" in title else None
            if part is None or process.environ().get("SAW_RUNS") != os.environ.get("SAW_RUNS"):
                continue
            spent = process.cpu_times()
        except psutil.Error:
            continue
        found[part] = round(spent.user + spent.system, 1)
        if part == "trainer":
            found["phase"] = PHASES.get(title.partition(".")[2].strip(), GENERATION)
    return found if len(found) == 3 else None


def follow(out: Path, setting: str, seconds: float) -> None:
    """Append one row whenever the phase changes."""
    before = None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        row = sample()
        if row and row["phase"] != before:
            before = row["phase"]
            line = pd.DataFrame([{"setting": setting, "time": time.strftime("%H:%M:%S"), **row}])[list(COLUMNS)]
            line.to_csv(out, mode="a", index=False, header=not out.exists())
        time.sleep(1)


def phases(path: Path) -> pd.DataFrame:
    """CPU seconds of each phase, one row per occurrence: setting, phase, seconds."""
    rows = pd.read_csv(path)
    both = rows["trainer"] + rows["engine"]
    spent = both.shift(-1) - both
    same = rows["setting"] == rows["setting"].shift(-1)
    return pd.DataFrame({"setting": rows["setting"], "phase": rows["phase"], "seconds": spent})[same]


def report(path: Path) -> str:
    """Markdown table: the phases of each setting, mean over their occurrences, and the sum."""
    table = phases(path)
    names = [GENERATION, *PHASES.values()]
    means = table.groupby(["setting", "phase"], sort=False)["seconds"].mean()
    rows = []
    for setting in dict.fromkeys(table["setting"]):
        own = [float(means.get((setting, name), 0.0)) for name in names]
        rows.append([setting, *(f"{value:.1f}" for value in own), f"{sum(own):.1f}"])
    return markdown(["setting", *names, "step"], rows, left=1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV; rows are appended")
    parser.add_argument("--setting", default="default", help="name in the table (default)")
    parser.add_argument("--seconds", type=float, default=600, help="how long to follow (600)")
    parser.add_argument("--report-only", action="store_true", help="print the table of an existing CSV")
    arguments = parser.parse_args()
    if not arguments.report_only:
        follow(arguments.out, arguments.setting, arguments.seconds)
    print(report(arguments.out))


if __name__ == "__main__":
    main()
