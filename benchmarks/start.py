"""Profile a start: CPU seconds and wall time from the command to the first logged step, by process and by part.

    python -m benchmarks.start [--against COMMIT] [--rounds 3] [--out results/start_benchmark]

Trains the quickstart's configuration for one step, with random weights, and samples every process of the run ten times
per second. Compare the CPU seconds of the whole process tree; on a shared machine, wall time is noise. With --against,
another commit and this checkout are started in turn, in the same environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from data_prep.toy_toolrl import write_splits
from recipes.quickstart.toy_model import make_toy_model
from saw.records import metrics_file
from saw.records.provenance import commit, machine, versions
from saw.report.tables import markdown, write_csv
from saw.runs.compose import checked_override
from saw.runs.process_tree import TrainingJob, processes_of

ROOT = Path(__file__).resolve().parents[1]
CLOCK = Path(__file__).with_name("import_clock")
LIMIT = 600.0  # seconds for one start
INTERVAL = 0.1  # seconds between samples of the processes
#: Printed by verl when the first step begins.
FIRST_STEP = "Training Progress"
PARTS = ("imports", "the rest of the start", "first step")


@dataclass
class Process:
    """CPU seconds of one process.

    Attributes:
        name (str): its role.
        total (float): seconds so far.
        at_first_step (float): seconds when the first step began.
    """

    name: str = ""
    total: float = 0.0
    at_first_step: float = 0.0


@dataclass
class Start:
    """Measurements of one start.

    Attributes:
        wall (float): seconds from the command to the first logged step.
        processes (dict[int, Process]): by process id.
        imports (dict[int, float]): CPU seconds that each process spent on imports.
    """

    wall: float = 0.0
    processes: dict[int, Process] = field(default_factory=dict)
    imports: dict[int, float] = field(default_factory=dict)

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes."""
        return sum(process.total for process in self.processes.values())

    def parts(self, pids: Sequence[int] | None = None) -> list[float]:
        """CPU seconds of each of :data:`PARTS`, for some or all processes; imports count as imports in any part."""
        chosen = self.processes if pids is None else pids
        imports = sum(self.imports.get(pid, 0.0) for pid in chosen)
        before = sum(self.processes[pid].at_first_step for pid in chosen)
        total = sum(self.processes[pid].total for pid in chosen)
        return [imports, max(0.0, before - imports), total - max(before, imports)]

    def by_name(self) -> dict[str, list[int]]:
        """Process ids by name, the most expensive names first."""
        names: dict[str, list[int]] = {}
        for pid, process in self.processes.items():
            names.setdefault(process.name, []).append(pid)
        return dict(sorted(names.items(), key=lambda item: -sum(self.processes[pid].total for pid in item[1])))


def measure(tree: Path, data: tuple[Path, Path], model: Path, folder: Path, overrides: Sequence[str]) -> Start:
    """Start a training of one step from a checkout, and follow its processes until the step is logged."""
    clock = folder / "imports"
    clock.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart", "trainer.total_training_steps=2"),
        *(f"data.train_files={data[0]}", f"data.val_files={data[1]}", f"actor_rollout_ref.model.path={model}"),
        *(f"trainer.default_local_dir={folder / 'checkpoints'}", *overrides),
    ]
    environment = {
        "PYTHONPATH": f"{CLOCK}:{tree}",
        "SAW_IMPORT_CLOCK": str(clock),
        metrics_file.LOCATION: str(folder / "metrics.jsonl"),
    }
    run = TrainingJob(["env", "-C", str(tree), *command], folder, LIMIT, environment)
    start = Start()
    started = time.monotonic()
    with run.running() as process:
        run_id = json.loads((folder / "running.json").read_text())["run_id"]
        stepping = False
        while not (run.metrics.exists() and run.metrics.read_text().endswith("\n")):
            if process.poll() is not None or time.monotonic() - started > LIMIT:
                raise SystemExit(f"the training of {tree} ended before its first step was logged; {run.log_end()}")
            look(run_id, start, stepping)
            stepping = stepping or FIRST_STEP in run.log.read_text(errors="replace")
            time.sleep(INTERVAL)
        start.wall = time.monotonic() - started
        look(run_id, start, stepping)
    start.imports = {int(path.name): float(path.read_text() or 0) for path in clock.iterdir()}
    return start


def look(run_id: str, start: Start, stepping: bool) -> None:
    """Update the CPU times of all processes of a run."""
    for process in processes_of(run_id):
        with contextlib.suppress(psutil.Error):
            seconds = sum(process.cpu_times()[:2])
            seen = start.processes.setdefault(process.pid, Process())
            seen.total = seconds
            if not stepping:
                seen.at_first_step = seconds
            seen.name = role(process.cmdline(), process.name()) or seen.name


def role(cmdline: Sequence[str], name: str) -> str:
    """The role of a process; empty for an idle Ray worker."""
    title = cmdline[0] if cmdline else name
    if found := re.match(r"ray::(\w+)", title):
        return "" if found[1] == "IDLE" else found[1]
    line = " ".join(cmdline)
    for sign, meaning in {
        "saw.runs.train": "driver",
        "EngineCore": "vLLM engine",
        "forked_workers.py --template": "template of the workers",
        "gcs_server": "Ray: control store",
        "raylet/raylet": "Ray: raylet",
        "default_worker": "Ray: workers without work",
        "multiprocessing": "multiprocessing",
    }.items():
        if sign in line:
            return meaning
    if "ray" in line:
        return f"Ray: {Path(cmdline[-1] if len(cmdline) < 3 else cmdline[1]).stem or name}"
    return name


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Check out another commit of this repository into a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), revision], cwd=ROOT, check=True)
        try:
            if not (tree / "saw" / "runs" / "train.py").exists():  # it would load the rest from this checkout
                raise SystemExit(f"{revision} has no saw/runs/train.py; choose a later commit for --against")
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def table_of_totals(starts: dict[str, list[Start]]) -> str:
    """Medians per commit: CPU seconds, in total and by part, wall time, number of processes."""
    rows = []
    for name, measured in starts.items():
        figures = [[start.cpu, *start.parts(), start.wall, len(start.processes)] for start in measured]
        medians = [statistics.median(column) for column in zip(*figures, strict=True)]
        spread = f"{min(start.cpu for start in measured):.0f} to {max(start.cpu for start in measured):.0f}"
        rows.append([name, f"{medians[0]:.0f}", spread, *(f"{value:.0f}" for value in medians[1:])])
    return markdown(["commit", "CPU, s", "min to max", *PARTS, "wall, s", "processes"], rows, left=1)


def table_of_processes(start: Start) -> str:
    """CPU seconds of one start by process and part; processes with less than half a second share the last row."""
    rows, small = [], []
    for name, pids in start.by_name().items():
        total = sum(start.processes[pid].total for pid in pids)
        if total < 0.5:
            small += pids
            continue
        rows.append([name, str(len(pids)), f"{total:.1f}", *(f"{value:.1f}" for value in start.parts(pids))])
    if small:
        total = sum(start.processes[pid].total for pid in small)
        rows.append(["others", str(len(small)), f"{total:.1f}", *(f"{value:.1f}" for value in start.parts(small))])
    return markdown(["process", "number", "CPU, s", *PARTS], rows, left=1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each commit (3)")
    parser.add_argument("--out", type=Path, help="folder for README.md and processes.csv (only printed if absent)")
    parser.add_argument("--keep", type=Path, help="folder for logs and metrics (temporary if absent)")
    parser.add_argument("overrides", nargs="*", type=checked_override, metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args()
    provenance = f"commit {commit()}; model seed 0; {arguments.rounds} starts of each, in turn"
    provenance += f"\n{machine()}; {versions('verl', 'vllm', 'torch', 'ray', 'transformers')}"
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = {commit(): ROOT}
        if arguments.against:
            trees = {arguments.against: stack.enter_context(checkout(arguments.against)), **trees}
        data = write_splits(folder.resolve() / "data")
        model = make_toy_model(folder.resolve() / "model", steps=0)
        starts: dict[str, list[Start]] = {name: [] for name in trees}
        for turn in range(arguments.rounds):
            for name, tree in trees.items():
                start = measure(tree, data, model, folder.resolve() / f"{turn}-{name}", arguments.overrides)
                starts[name].append(start)
                print(f"{name}: {start.cpu:.0f} CPU s, {start.wall:.0f} s of wall time", file=sys.stderr)
    texts = [table_of_totals(starts)]
    for name, measured in starts.items():
        typical = sorted(measured, key=lambda start: start.cpu)[len(measured) // 2]
        texts.append(f"## By process, {name}\n\n{table_of_processes(typical)}")
    command = " ".join(["bash scripts/benchmark.sh start", *sys.argv[1:]])
    page = "\n\n".join([*texts, f"```\n{command}\n{provenance}\n```"])
    print(page)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "README.md").write_text(f"# From the command to the first step\n\n{page}\n")
        rows = [
            {"commit": name, "round": turn + 1, "process": of, "number": len(pids), "wall": start.wall}
            | dict(zip(("imports", "rest", "first_step"), start.parts(pids), strict=True))
            for name, measured in starts.items()
            for turn, start in enumerate(measured)
            for of, pids in start.by_name().items()
        ]
        write_csv(arguments.out / "processes.csv", rows)


if __name__ == "__main__":
    main()
