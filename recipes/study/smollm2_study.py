"""GRPO and GDPO with and without SAW on a real language model: SmolLM2-135M-Instruct, short answers.

    bash scripts/study.sh smollm2 [--seeds 1,2,3] [--method grpo ...] [--steps 12] [--out results/smollm2/study]
                                  [--parallel 4] [KEY=VALUE ...]
    python -m recipes.study.smollm2_study --report-only

Trains what is missing (runs/smollm2; a killed training restarts, a finished one is skipped), then writes steps.csv and
held_out.csv, from which it makes the tables and figures. Questions and rewards: short_answers.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from recipes.ablations import sweep
from recipes.common import smollm2
from recipes.common.reproduce import refuse_own, run_main, seed_list
from recipes.common.stages import Stage, run_all
from recipes.study import language_model as lm
from recipes.study import short_answers
from saw.report import figures, summary
from saw.report.history import LoggedRun, read_run
from saw.report.seed_statistics import bootstrap_mean
from saw.runs.compose import checked_override

EXPERIMENT = "short_answers"
METHODS = ("grpo", "saw_grpo", "gdpo", "saw_gdpo")
DEFAULT_SEEDS = (1,)
#: Setting that the command line has an option for -> what to use instead of an override.
OWN = {**sweep.TOLD_APART_IN_A_STUDY, "trainer.total_training_steps": "--steps"}
#: Metrics kept of every step. The experiment uses vLLM's log-probabilities, so no old ones are computed.
KEPT = (
    *(f"saw/{name}/{what}" for name in short_answers.RANGES for what in ("mean", "cv", "weight", "zero_spread")),
    *(name for name in lm.TIMES if name != "timing_s/old_log_prob"),
    "response_length/mean",
)
COST_NOTE = "Medians over all steps and seeds. Trainings and other work at the same time shared the machine."


def chains(arguments: argparse.Namespace, runs: Path) -> dict[str, list[Stage]]:
    """One training for each seed and method, by the name of its folder."""
    data = runs / "data"
    asked = sweep.parse(
        [
            *("--experiment", EXPERIMENT, "--out", str(runs), "--seeds", ",".join(map(str, arguments.seeds))),
            *(text for method in arguments.method for text in ("--method", method)),
            *(f"data.train_files={data / 'train.parquet'}", f"data.val_files={data / 'test.parquet'}"),
            *(f"actor_rollout_ref.model.path={smollm2.default_folder()}", smollm2.CACHE),
            f"reward.custom_reward_function.path={short_answers.__file__}",
            *(f"trainer.total_training_steps={arguments.steps}", f"trainer.test_freq={arguments.steps}"),
            *arguments.overrides,
        ]
    )
    return sweep.plan(asked)


def shared(runs: Path) -> list[Stage]:
    """The stages that make model and data, if they do not exist."""
    made = smollm2.stages(smollm2.default_folder())
    if not (runs / "data" / "test.parquet").exists():
        made.append(Stage("data", runs, ("-m", "recipes.study.short_answers", "--out", str(runs / "data"))))
    return made


def write(runs: Sequence[LoggedRun], out: Path) -> None:
    """All runs' steps and validations as two CSVs."""
    held_out = [
        {
            **{"method": run.method, "seed": run.seed, "step": step},
            **{name: validation[f"saw-val/{name}/mean"] for name in short_answers.RANGES},
        }
        for run in runs
        for step, validation in sorted(run.validation.items())
    ]
    out.mkdir(parents=True, exist_ok=True)
    lm.write_steps(runs, out / "steps.csv", KEPT)
    pd.DataFrame(held_out).to_csv(out / "held_out.csv", index=False, float_format="%.7g")


def read(out: Path) -> dict[str, list[LoggedRun]]:
    """The runs of the CSVs by their method."""
    groups = lm.read_steps(out / "steps.csv", short_answers.RANGES)
    validations: dict[tuple[str, int | None], dict[int, dict[str, float]]] = {}
    for row in pd.read_csv(out / "held_out.csv", float_precision="round_trip").to_dict("records"):
        values = {f"saw-val/{name}/mean": float(row[name]) for name in short_answers.RANGES}
        validations.setdefault((row["method"], row["seed"]), {})[row["step"]] = values
    return {
        method: [replace(run, validation=validations[method, run.seed]) for run in groups[method]]
        for method in METHODS
        if method in groups
    }


def held_out(groups: Mapping[str, Sequence[LoggedRun]]) -> summary.Table:
    """Each objective's mean reward on questions that were not trained on, before and after the training."""
    rows = []
    for method, runs in groups.items():
        for name in short_answers.RANGES:
            ends = [(min(run.validation), max(run.validation)) for run in runs]
            before, after = (
                [run.validation[end[place]][f"saw-val/{name}/mean"] for run, end in zip(runs, ends, strict=True)]
                for place in (0, 1)
            )
            gained = [last - first for first, last in zip(before, after, strict=True)]
            rows.append((method, name, *(str(bootstrap_mean(values)) for values in (before, after, gained))))
    header = ("method", "objective", "before", "after", "gain")
    note = (
        f"{short_answers.TEST_ROWS} questions, one sampled answer each. Brackets: 95 % bootstrap intervals over seeds."
    )
    return summary.Table("Held-out questions", header, tuple(rows), left=2, note=note)


def report(out: Path) -> str:
    """Tables and figures from the CSVs; returns the text of ``README.md`` without its provenance."""
    groups = read(out)
    shown = [held_out(groups), summary.summary(groups, {})]
    for base in ("grpo", "gdpo"):
        own = {method: runs for method, runs in groups.items() if method in (base, f"saw_{base}")}
        if len(own) == 2:
            shown.append(summary.tests(own, base))
    shown.append(lm.cost(groups, COST_NOTE))
    drawn = figures.draw_all(groups, out)
    text = ["# SmolLM2-135M-Instruct learns short answers", *(table.section() for table in shown)]
    text += [f"![{path.stem}]({path.name})" for path in drawn]
    return "\n\n".join(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(DEFAULT_SEEDS), metavar="1,2,3", help="(1)")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated; all if absent")
    parser.add_argument("--steps", type=int, default=12, help="of a training (12)")
    lm.add_options(parser, Path("results/smollm2/study"), parallel=1)
    parser.add_argument("overrides", nargs="*", type=checked_override, metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}; expected at least 1")
    refuse_own(parser, arguments.overrides, OWN)
    arguments.method = arguments.method or list(METHODS)
    runs = Path(os.environ.get("SAW_RUNS", "runs")).resolve() / "smollm2"
    if not arguments.report_only:
        run_all(shared(runs), chains(arguments, runs), lambda: None, arguments.parallel)
    if arguments.train_only:
        return
    finished = [read_run(mark.parent) for mark in sorted(runs.glob("*/train.done.json"))]
    if not finished:
        raise SystemExit(f"{runs} has no finished training")
    write(finished, arguments.out)
    text = report(arguments.out)
    last = max(run.history.steps[-1] for run in finished)
    where = lm.origin(finished, last, "smollm2", METHODS, DEFAULT_SEEDS)
    (arguments.out / "README.md").write_text(f"{text}\n\n{where}\n")
    print(text)


if __name__ == "__main__":
    run_main(main)
