"""A small language model in the real pipeline: every method, several seeds, paired tests.

    bash scripts/study.sh lm [--seeds 1,2,3,4,5] [--method grpo ...] [--out results/study/lm]
    python -m recipes.study.language_model --report-only

Trains what is missing (runs/study; a killed training restarts, a finished one is skipped), then writes steps.csv, from
which it makes the tables and figures.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pandas as pd
from scipy import stats

from recipes.ablations import sweep
from recipes.common.reproduce import run_main, seed_list
from recipes.common.stages import run_all
from saw.report import figures, summary
from saw.report.history import History, LoggedRun, read_run
from saw.report.seed_statistics import bootstrap_mean, steps_to

#: Row of the tables -> method and overrides. The gradient methods have the released code's learning rate, at which the
#: weights hardly change here, or ten times that. At the toy model's own rate they go to 0 and 1.
METHODS = {
    **{name: name for name in ("grpo", "saw_grpo", "gdpo", "saw_gdpo", "random_grpo", "random_gdpo")},
    **{
        f"{name}{mark}": f"{name},saw.options.gradient.lr={rate}"
        for mark, rate in (("", "1e-6"), (", lr=1e-5", "1e-5"))
        for name in ("gradient_grpo", "gradient_gdpo")
    },
}
#: Trained by default: under half an hour per seed.
DEFAULT_METHODS = tuple(label for label in METHODS if "," not in label)
DEFAULT_SEEDS = (1, 2, 3, 4, 5)
OBJECTIVES = {"format": (0.0, 1.0), "correctness": (-3.0, 3.0)}
TIMES = tuple(f"timing_s/{part}" for part in ("gen", "old_log_prob", "adv", "update_actor", "update_weights", "step"))
#: Metrics kept of every step.
KEPT = (
    *(f"saw/{name}/{what}" for name in OBJECTIVES for what in ("mean", "cv", "weight", "zero_spread")),
    *(*TIMES, "actor/entropy", "response_length/mean"),
)
#: Beside steps.csv: a row per training, with these parts of its run.json.
TRAININGS = "trainings.csv"
RECORDED = ("commit", "machine", "versions")
THRESHOLDS = {"format": 0.9, "correctness": 1.5}
#: Steps ahead over which an objective's gain is measured, and the number of steps averaged at each end.
AHEAD, SMOOTH = 10, 5


def write_steps(runs: Sequence[LoggedRun], path: Path, kept: Sequence[str] = KEPT) -> int:
    """Write all runs' steps to one CSV, up to the last step of the shortest run; returns that step.

    Beside it, :data:`TRAININGS` has where each was trained. Final values are compared, so they must be of the same
    step. The learning rate is constant, so the first steps of a longer training equal a shorter one.
    """
    last = min(run.history.steps[-1] for run in runs)
    frames = []
    for run in runs:
        whose = {"method": _row_of(run), "seed": run.seed, "commit": run.info["provenance"]["commit"]}
        values = {name: run.history.columns[name] for name in kept}
        frames.append(pd.DataFrame({**whose, "step": run.history.steps, **values}))
    table = pd.concat(frames)
    table[table["step"] <= last].to_csv(path, index=False, float_format="%.7g", na_rep="nan")
    records = [[_row_of(run), run.seed, *(run.info["provenance"].get(name, "") for name in RECORDED)] for run in runs]
    pd.DataFrame(records, columns=["method", "seed", *RECORDED]).to_csv(path.with_name(TRAININGS), index=False)
    return last


def read_steps(path: Path, ranges: Mapping[str, tuple[float, float]] = OBJECTIVES) -> dict[str, list[LoggedRun]]:
    """The runs of a CSV by their row of the tables; ``ranges`` has each objective's smallest and largest reward."""
    table = pd.read_csv(path, dtype={"commit": str}, float_precision="round_trip")
    kept = [name for name in table if name not in ("method", "seed", "commit", "step")]
    records = _read_trainings(path.with_name(TRAININGS))
    groups: dict[str, list[LoggedRun]] = {}
    for (label, seed, commit), steps in table.groupby(["method", "seed", "commit"], sort=False):
        columns = {name: tuple(steps[name].astype(float)) for name in kept}
        history = History(tuple(steps["step"]), tuple(ranges), columns)
        info = {
            "config": {"saw": {"method": label.partition(",")[0]}, "data": {"seed": int(seed)}},
            "ranges": {name: list(bounds) for name, bounds in ranges.items()},
            "provenance": records.get((label, int(seed), commit), {"commit": commit}),
        }
        folder = path.parent / f"{sweep.label(METHODS[label])}_seed{seed}"  # as the training was named
        groups.setdefault(label, []).append(LoggedRun(folder, history, {}, info))
    return groups


def _read_trainings(path: Path) -> dict[tuple[str, int, str], dict[str, str]]:
    """Where each training of :data:`TRAININGS` was trained, by method, seed and commit; empty if there is no file."""
    if not path.is_file():
        return {}
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    return {(row["method"], int(row["seed"]), row["commit"]): {name: row[name] for name in RECORDED} for row in rows}


def trained_on(runs: Sequence[LoggedRun]) -> str:
    """Machine and versions of the trainings as recorded at their start, which may have been elsewhere; each once."""
    made = [(run.info["provenance"].get("machine"), run.info["provenance"].get("versions")) for run in runs]
    found = [f"{machine}; {versions}" for machine, versions in made if machine and versions]
    if unknown := len(made) - len(found):
        found.append(f"machine and versions of {unknown} trainings were not recorded")
    return "; ".join(dict.fromkeys(found))


def origin(
    runs: Sequence[LoggedRun],
    last: int,
    study: str = "lm",
    methods: Sequence[str] = DEFAULT_METHODS,
    seeds: Sequence[int] = DEFAULT_SEEDS,
) -> str:
    """The line of a study's page that says how its numbers were made.

    Args:
        runs (Sequence[LoggedRun]): its trainings.
        last (int): the last step of each.
        study (str): the first argument of scripts/study.sh.
        methods (Sequence[str]): what the study trains without ``--method``.
        seeds (Sequence[int]): what it trains without ``--seeds``.
    """
    rows = {_row_of(run) for run in runs}
    own = [label for label in METHODS if label in rows]
    numbers = sorted({run.seed for run in runs if run.seed is not None})
    options = [] if own == list(methods) else [text for label in own for text in ("--method", shlex.quote(label))]
    options += [] if numbers == list(seeds) else ["--seeds", ",".join(map(str, numbers))]
    command = " ".join(["bash", "scripts/study.sh", study, *options])
    return f"`{command}`; {len(runs)} trainings, {last} steps of each, commits in steps.csv; {trained_on(runs)}."


def _row_of(run: LoggedRun) -> str:
    """The row of the tables that a training belongs to, by the name of its folder."""
    folder = run.folder.name.rpartition("_seed")[0]
    return next(label for label, method in METHODS.items() if sweep.label(method) == folder)


def learned_at(groups: dict[str, list[LoggedRun]]) -> summary.Table:
    """When each objective has covered 90 % of the way from its first five steps to its plateau."""
    rows = []
    for label, runs in groups.items():
        cells = []
        for name in OBJECTIVES:
            steps = [_learned_at(run.history, name) for run in runs]
            reached = [step for step in steps if math.isfinite(step)]
            cells.append(f"{np.median(reached):.0f} ({len(reached)} of {len(steps)})" if reached else "never")
        rows.append((label, *cells))
    note = (
        "An objective is learned when its mean over five steps has covered 90 % of the way from the first five steps "
        "to the plateau, which is the median of the second half of the run. Median step over seeds; in brackets, the "
        "seeds that get there."
    )
    return summary.Table("Learned at", ("method", *OBJECTIVES), tuple(rows), left=1, note=note)


def _learned_at(history: History, objective: str) -> float:
    values = history.of(objective, "mean")
    first, plateau = fmean(values[:5]), median(values[len(values) // 2 :])
    return steps_to(history.steps, values, first + 0.9 * (plateau - first), window=5) if plateau > first else math.inf


def signal(groups: dict[str, list[LoggedRun]]) -> summary.Table:
    """Rank correlations of an objective's CV with its later gain and with the groups that still have spread."""
    rows = []
    for label, runs in groups.items():
        found: dict[str, list[float]] = {name: [] for name in ("gain", "spread", *OBJECTIVES)}
        for run in runs:
            cvs: list[float] = []
            gains: list[float] = []
            spreads: list[float] = []
            for name, (low, high) in OBJECTIVES.items():
                mean = np.convolve(run.history.of(name, "mean"), np.ones(SMOOTH) / SMOOTH, mode="valid")
                gain = (mean[AHEAD:] - mean[:-AHEAD]) / (high - low)
                cv = np.array(run.history.of(name, "cv"))[: len(gain)]
                spread = 1 - np.array(run.history.of(name, "zero_spread"))[: len(gain)]
                found[name].append(float(stats.spearmanr(cv, gain).statistic))
                cvs, gains, spreads = [*cvs, *cv], [*gains, *gain], [*spreads, *spread]
            found["gain"].append(float(stats.spearmanr(cvs, gains).statistic))
            found["spread"].append(float(stats.spearmanr(cvs, spreads).statistic))
        rows.append((label, *(str(bootstrap_mean(values)) for values in found.values())))
    note = (
        f"Spearman's rank correlation over the steps of a run, mean over seeds. Gain: mean reward {AHEAD} steps later, "
        f"each mean over {SMOOTH} steps, as a share of the reward's range."
    )
    header = (
        "method",
        "CV and gain, both objectives",
        "CV and spread",
        *(f"gain within {name}" for name in OBJECTIVES),
    )
    return summary.Table("CV as a signal", header, tuple(rows), left=1, note=note)


COST_NOTE = (
    "Medians over all steps and seeds. The trainings ran two at a time and shared the machine; benchmarks/step.py "
    "measures one method at a time."
)


def cost(groups: Mapping[str, Sequence[LoggedRun]], note: str = COST_NOTE) -> summary.Table:
    """Median seconds per step; 0 for a part that was not run."""
    rows = [(label, *(f"{figures.median_of(runs, name):.2f}" for name in TIMES)) for label, runs in groups.items()]
    header = ("method", *(name.removeprefix("timing_s/") for name in TIMES))
    return summary.Table("Seconds per step", header, tuple(rows), left=1, note=note)


def report(out: Path) -> str:
    """Tables and figures from ``steps.csv``; returns the text of ``README.md`` without its provenance."""
    groups = read_steps(out / "steps.csv")
    groups = {name: groups[name] for name in METHODS if name in groups}
    shown = [summary.summary(groups, THRESHOLDS)]
    for base in ("grpo", "gdpo"):
        own = {name: runs for name, runs in groups.items() if figures.family(runs[0].method) == figures.family(base)}
        if base in own and len(own) > 1:
            shown.append(summary.tests(own, base))
    shown += [table for table in (summary.front(groups), learned_at(groups), signal(groups), cost(groups)) if table]
    drawn = figures.draw_all(groups, out)
    text = ["# A small language model in the real pipeline", *(table.section() for table in shown)]
    text += [f"![{path.stem}]({path.name})" for path in drawn]
    return "\n\n".join(text)


def add_options(parser: argparse.ArgumentParser, out: Path, parallel: int) -> None:
    """Add what every study in the pipeline has, with these defaults."""
    parser.add_argument(
        "--parallel",
        type=int,
        default=parallel,
        choices=range(1, 9),
        help=f"trainings at a time ({parallel}); on GPUs, each has its own",
    )
    parser.add_argument("--out", type=Path, default=out, help="for CSV, tables and figures")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is finished")
    parser.add_argument("--train-only", action="store_true", help="train, report nothing")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(DEFAULT_SEEDS), metavar="1,2,3", help="(1 to 5)")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated (those without a comma)")
    add_options(parser, Path("results/study/lm"), parallel=2)  # for two cores
    parser.add_argument("--add", action="store_true", help="keep the trainings in steps.csv, train the others")
    arguments = parser.parse_args(argv)
    runs = Path(os.environ.get("SAW_RUNS", "runs")).resolve() / "study"
    methods = [text for label in arguments.method or DEFAULT_METHODS for text in ("--method", METHODS[label])]
    seeds = ",".join(map(str, arguments.seeds))
    asked = sweep.parse(["--experiment", "study", "--seeds", seeds, "--out", str(runs), *methods])
    steps = arguments.out / "steps.csv"
    earlier = {run.folder.name: run for group in read_steps(steps).values() for run in group} if arguments.add else {}
    if not arguments.report_only:
        chains = {name: stages for name, stages in sweep.plan(asked).items() if name not in earlier}
        run_all(sweep.toys("study"), chains, lambda: None, arguments.parallel)
    if arguments.train_only:
        return
    finished = [read_run(mark.parent) for mark in sorted(runs.glob("*/train.done.json"))]
    found = list(({run.folder.name: run for run in finished} | earlier).values())
    if not found:
        raise SystemExit(f"{runs} has no finished training")
    arguments.out.mkdir(parents=True, exist_ok=True)
    last = write_steps(found, steps)
    text = report(arguments.out)
    (arguments.out / "README.md").write_text(f"{text}\n\n{origin(found, last)}\n")
    print(text)


if __name__ == "__main__":
    run_main(main)
