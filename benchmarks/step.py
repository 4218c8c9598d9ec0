"""Time a training step with every method in the real pipeline, in turn and in one run.

    python -m benchmarks.step [--width 96] [--rounds 21] [--methods "grpo; saw_gdpo"] [--out results/step_benchmark]

Each round runs every method once, so that all have the same machine, model and kind of batch; a step is compared with
the first method's step in the same round. Responses never end early, so all steps have the same number of tokens.
Finished rollouts are polled every 20 ms, so that the polling interval hardly affects the times. The first two rounds
are not counted. The model is the quickstart's or a wider one, with random weights, as its answers do not matter here.
With --out, the times of every step are written to steps.csv, from which the table is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from data_prep.toy_toolrl import write_splits
from recipes.quickstart.toy_model import make_toy_model
from saw.records.provenance import commit, machine, versions
from saw.report.seed_statistics import bootstrap_median
from saw.report.tables import markdown, write_csv
from saw.runs.process_tree import JobFailed, TrainingJob

#: Name in the table -> method and options.
CASES: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in ("grpo", "gdpo", "saw_grpo", "saw_gdpo", "random_gdpo", "mo_grpo", "dvao")},
    "static_gdpo": ("static_gdpo", {"static_weights": [1, 3]}),
    "gradient_grpo": ("gradient_grpo", {"gradient": {"lr": 1e-6}}),
    "gradient_gdpo": ("gradient_gdpo", {"gradient": {"lr": 1e-6}}),
    "gradient_grpo, upper half": ("gradient_grpo", {"gradient": {"lr": 1e-6, "layers": [2, 3]}}),
}
#: Column of the CSV -> metric that is logged per step; in seconds, except tokens.
PARTS = {
    "step": "timing_s/step",
    **{part: f"timing_s/{part}" for part in ("gen", "old_log_prob", "adv", "update_actor", "update_weights")},
    **{f"gradients_{part}": f"saw/gradients/{part}_seconds" for part in ("forward", "backward")},
    "tokens": "response_length/mean",
}
LAYERS = 4
WARM_UP = 2


def command(data: tuple[Path, Path], model: Path, steps: int, arguments: argparse.Namespace) -> list[str]:
    """Command of the training whose steps are timed."""
    return [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart", "saw.method=gradient_grpo"),
        *(f"data.train_files={data[0]}", f"data.val_files={data[1]}", f"actor_rollout_ref.model.path={model}"),
        *(f"data.train_batch_size={arguments.prompts}", f"data.max_response_length={arguments.tokens}"),
        f"actor_rollout_ref.actor.ppo_mini_batch_size={arguments.prompts}",
        f"actor_rollout_ref.rollout.max_model_len={40 + arguments.tokens}",
        *("actor_rollout_ref.rollout.ignore_eos=true", "actor_rollout_ref.actor.optim.lr=1e-6"),
        *(f"trainer.total_training_steps={steps}", "trainer.test_freq=-1", "saw.poll_interval=0.02"),
        f"reward.custom_reward_function.path={Path(__file__).with_name('changing_method.py')}",
    ]


def run(folder: Path, names: Sequence[str], arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Train, and return one row per counted step: round, method, and the columns of :data:`PARTS`."""
    data = write_splits(folder / "data")
    model = make_toy_model(folder / "model", steps=0, width=arguments.width, layers=LAYERS)
    steps = (arguments.rounds + WARM_UP) * len(names)
    training = TrainingJob(
        command(data, model, steps, arguments),
        folder,
        time_limit=arguments.hours * 3600,
        environment={"SAW_PLAN": json.dumps([CASES[name] for name in names])},
    )
    rows: list[dict[str, object]] = []

    def report(step: int, metrics: dict[str, float]) -> None:
        turn, place = divmod(step - 1, len(names))
        print(f"{step}/{steps} {names[place]} {metrics['timing_s/step']:.2f} s", file=sys.stderr)
        if turn >= WARM_UP:
            times = {part: round(float(metrics.get(metric, 0.0)), 4) for part, metric in PARTS.items()}  # as in the CSV
            rows.append({"round": turn - WARM_UP + 1, "method": names[place], **times})

    training.follow(report)
    return rows


def read(path: Path) -> list[dict[str, object]]:
    """Read the rows of :func:`run` from their CSV."""
    return pd.read_csv(path, float_precision="round_trip").to_dict("records")


def table(rows: Sequence[dict]) -> str:
    """Median seconds per method and part, and the step time relative to the first method's in the same round."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    of = {name: [row for row in rows if row["method"] == name] for name in names}
    shown = [part for part in PARTS if part != "tokens"]
    lines = []
    for name in names:
        medians = [statistics.median(row[part] for row in of[name]) for part in shown]
        pairs = zip(of[name], of[names[0]], strict=True)
        over = bootstrap_median([100 * (row["step"] / base["step"] - 1) for row, base in pairs])
        cell = "" if name == names[0] else f"{over.mean:+.1f} % [{over.low:+.1f}, {over.high:+.1f}]"
        lines.append([name, f"{medians[0]:.3f}", cell, *(f"{value:.3f}" for value in medians[1:])])
    header = [
        "method",
        "step, s",
        f"over {names[0]}",
        *(part.replace("gradients_", "gradients: ") for part in shown[1:]),
    ]
    tokens = statistics.mean(row["tokens"] for row in rows)
    note = (
        f"Medians of n = {len(of[names[0]])} steps each. Over {names[0]}: step time relative to {names[0]}'s in the "
        f"same round, median over rounds with its 95 % bootstrap interval. {tokens:.0f} tokens per reply."
    )
    return f"{markdown(header, lines, left=1)}\n\n{note}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help=f"separated by semicolons; from {'; '.join(CASES)} (all)")
    parser.add_argument("--rounds", type=int, default=21, help="counted steps of each method (21)")
    parser.add_argument("--width", type=int, default=96, help="width of the model, a multiple of 96 (96)")
    parser.add_argument("--prompts", type=int, default=16, help="prompts per step, with four responses each (16)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens per response (48)")
    parser.add_argument("--hours", type=float, default=2.0, help="time limit, in hours (2)")
    parser.add_argument("--out", type=Path, help="folder for steps.csv (not written if absent)")
    parser.add_argument("--keep", type=Path, help="folder for log and metrics (temporary if absent)")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.methods.split(";")] if arguments.methods else list(CASES)
    for name in names:
        if name not in CASES:
            parser.error(f"--methods: {name!r} is unknown; allowed are {'; '.join(CASES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            rows = run(folder, names, arguments)
        except JobFailed as failure:
            raise SystemExit(f"the training failed: {failure}") from None
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_csv(arguments.out / "steps.csv", rows)
    device = "cuda" if os.environ.get("SAW_PLATFORM") == "gpu" else "cpu"
    print(f"{machine(device)}; {versions('torch', 'verl', 'vllm')}; commit {commit()}; seed 1")
    print(f"model: {LAYERS} layers of {arguments.width}; {arguments.prompts} prompts x 4 responses\n")
    print(table(rows))


if __name__ == "__main__":
    main()
