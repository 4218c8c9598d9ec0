"""Time a training step of every method in the real pipeline, in one run, in turn.

    python -m benchmarks.step [--width 96] [--rounds 21] [--methods "grpo; saw_gdpo"]

Each round takes every method once, so that all see the same machine, model and kind of batch; every response has the
full length (no end of sequence), so that all steps have the same tokens. The first two rounds do not count; the medians
do. The model is the quickstart's, or a wider one, with random weights: what it says does not matter here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from data_prep.toy_toolrl import write_splits
from recipes.quickstart.toy_model import make_toy_model
from saw.launch import Run
from saw.provenance import commit, machine, versions

#: Name in the table -> method and options.
CASES: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in ("grpo", "gdpo", "saw_grpo", "saw_gdpo", "random_gdpo", "mo_grpo", "dvao")},
    "static_gdpo": ("static_gdpo", {"static_weights": [1, 3]}),
    "gradient_grpo": ("gradient_grpo", {"gradient": {"lr": 1e-6}}),
    "gradient_gdpo": ("gradient_gdpo", {"gradient": {"lr": 1e-6}}),
    "gradient_grpo, upper half": ("gradient_grpo", {"gradient": {"lr": 1e-6, "layers": [2, 3]}}),
}
PARTS = ("gen", "old_log_prob", "adv", "update_actor", "update_weights")
LAYERS = 4
WARM_UP = 2


def command(data: tuple[Path, Path], model: Path, steps: int, arguments: argparse.Namespace) -> list[str]:
    """The training whose steps are timed."""
    return [
        *(sys.executable, "-m", "saw.train", "experiment=quickstart", "saw.method=gradient_grpo"),
        *(f"data.train_files={data[0]}", f"data.val_files={data[1]}", f"actor_rollout_ref.model.path={model}"),
        *(f"data.train_batch_size={arguments.prompts}", f"data.max_response_length={arguments.tokens}"),
        f"actor_rollout_ref.actor.ppo_mini_batch_size={arguments.prompts}",
        f"actor_rollout_ref.rollout.max_model_len={128 + arguments.tokens}",
        *("actor_rollout_ref.rollout.ignore_eos=true", "actor_rollout_ref.actor.optim.lr=1e-6"),
        *(f"trainer.total_training_steps={steps}", "trainer.test_freq=-1"),
        f"reward.custom_reward_function.path={Path(__file__).with_name('changing_method.py')}",
    ]


def run(folder: Path, names: list[str], arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Train, and return the metrics of every step."""
    data = write_splits(folder / "data")
    model = make_toy_model(folder / "model", steps=0, width=arguments.width, layers=LAYERS)
    steps = (arguments.rounds + WARM_UP) * len(names)
    training = Run(
        command(data, model, steps, arguments),
        folder,
        time_limit=arguments.hours * 3600,
        environment={"SAW_PLAN": json.dumps([CASES[name] for name in names])},
    )
    found: list[dict[str, float]] = []

    def report(step: int, metrics: dict[str, float]) -> None:
        found.append(metrics)
        print(f"{step}/{steps} {names[(step - 1) % len(names)]} {metrics['timing_s/step']:.2f} s", file=sys.stderr)

    training.follow(report)
    return found


def table(found: list[dict[str, float]], names: list[str]) -> str:
    """Median seconds of each method and part, and what the whole step takes over that of the first method."""
    counted = found[WARM_UP * len(names) :]
    rows = {name: counted[place :: len(names)] for place, name in enumerate(names)}

    def median(name: str, what: str) -> float:
        return statistics.median(row.get(what, 0.0) for row in rows[name])

    lines = [f"| method | step, s | over {names[0]} | {' | '.join(PARTS)} | gradients: forward | backward |"]
    lines.append("|---|" + "---:|" * (len(PARTS) + 4))
    base = median(names[0], "timing_s/step")
    for name in names:
        step = median(name, "timing_s/step")
        parts = [median(name, f"timing_s/{part}") for part in PARTS]
        parts += [median(name, f"saw/gradients/{part}_seconds") for part in ("forward", "backward")]
        cells = " | ".join(f"{value:.3f}" for value in parts)
        lines.append(f"| {name} | {step:.3f} | {100 * (step / base - 1):+.1f} % | {cells} |")
    tokens = statistics.mean(row["response_length/mean"] for row in counted)
    return "\n".join([*lines, "", f"n = {len(counted) // len(names)} steps each; {tokens:.0f} tokens a response."])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help=f"separated by semicolons, of: {'; '.join(CASES)} (all)")
    parser.add_argument("--rounds", type=int, default=21, help="steps of each method that count (21)")
    parser.add_argument("--width", type=int, default=96, help="of the model, a multiple of 96 (96)")
    parser.add_argument("--prompts", type=int, default=16, help="a step, with four responses each (16)")
    parser.add_argument("--tokens", type=int, default=48, help="of each response (48)")
    parser.add_argument("--hours", type=float, default=2.0, help="time limit (2)")
    parser.add_argument("--keep", type=Path, help="folder for log and metrics (a temporary one)")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.methods.split(";")] if arguments.methods else list(CASES)
    for name in names:
        if name not in CASES:
            parser.error(f"--methods: {name!r} is none of {'; '.join(CASES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found = run(folder, names, arguments)
    device = "cuda" if os.environ.get("SAW_PLATFORM") == "gpu" else "cpu"
    print(f"{machine(device)}; {versions('torch', 'verl', 'vllm')}; commit {commit()}; seed 1")
    print(f"model: {LAYERS} layers of {arguments.width}; {arguments.prompts} prompts x 4 responses\n")
    print(table(found, names))


if __name__ == "__main__":
    main()
