"""The language model's study with more seeds: GRPO and GDPO with and without SAW, in the lean trainer.

    bash scripts/study.sh lean [--seeds 1,2,...,20] [--method grpo ...] [--out results/study/lean] [KEY=VALUE ...]
    python -m recipes.study.lean_study --report-only

Trains what is missing (runs/study_lean; a finished training is skipped, an interrupted one starts again), one training
after another in one thread, then writes steps.csv, from which it makes the tables and figures. KEY=VALUE are Hydra
overrides of all trainings. ``--against FOLDER`` trains nothing, but compares the trainings in ``--out`` with those of
the pipeline in FOLDER (``study.sh lm --out FOLDER``), and writes FOLDER/trainers.md. Both must have begun with the same
model and rows.

What is tested was fixed before the first training of this study: the comparisons (:data:`PAIRS`, each objective, final
reward and area under the curve, all corrected together), and the margin (:data:`MARGIN`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests

from recipes.ablations import sweep
from recipes.common.reproduce import refuse_own, run_main, seed_list
from recipes.common.stages import run_all
from recipes.study import language_model as lm
from recipes.study.lean import Unsupported, settings_of, train
from saw.report import figures, summary
from saw.report.history import LOG, LoggedRun, read_run
from saw.report.seed_statistics import PairedTest, equivalence, paired_tests
from saw.runs.compose import NotComposed, checked_override, compose

METHODS = ("grpo", "saw_grpo", "gdpo", "saw_gdpo")
#: Method -> what it is compared with, seed by seed.
PAIRS = {"saw_grpo": "grpo", "saw_gdpo": "gdpo"}
SEEDS = tuple(range(1, 21))
#: The largest difference that would not matter, as a share of an objective's range.
MARGIN = 0.02
MEASURES = {f"last {summary.LAST} steps": summary.final, summary.AREA: summary.area_under_curve}
#: Random divisions of the runs in the test that compares two sets of curves.
DIVISIONS = 10_000
#: The page that compares two trainers, in the pipeline's folder.
AGAINST = "trainers.md"
#: Metrics kept of every step.
KEPT = (
    *(name for name in lm.KEPT if not name.startswith("timing_s/")),
    *("timing_s/gen", "timing_s/adv", "timing_s/update_actor", "timing_s/step"),
)
Groups = Mapping[str, Sequence[LoggedRun]]


def differences(groups: Groups, method: str, objective: str, measure: str) -> list[float]:
    """A measure of a method minus that of its base, one value per common seed."""
    own, base = (
        {run.seed: MEASURES[measure](run, objective) for run in groups[name]} for name in (method, PAIRS[method])
    )
    return [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys(), key=str)]


def comparisons(groups: Groups) -> dict[tuple[str, str, str], tuple[PairedTest, float]]:
    """(method, objective, measure) -> paired test, by Holm over all of them, and p of the test for equivalence."""
    gaps = {
        (method, objective, measure): differences(groups, method, objective, measure)
        for method, base in PAIRS.items()
        if {method, base} <= groups.keys()
        for objective in lm.OBJECTIVES
        for measure in MEASURES
    }
    margins = {objective: MARGIN * (high - low) for objective, (low, high) in lm.OBJECTIVES.items()}
    return {place: (test, equivalence(gaps[place], margins[place[1]])[1]) for place, test in paired_tests(gaps).items()}


def verdicts(groups: Groups) -> summary.Table:
    """:func:`comparisons` as a table."""
    rows = tuple(
        (
            *(method, objective, measure, str(test.difference)),
            *(f"{value:.3g}" for value in (test.p, test.p_corrected, test.effect, same)),
        )
        for (method, objective, measure), (test, same) in comparisons(groups).items()
    )
    margins = " and ".join(f"{MARGIN * (high - low):g} ({name})" for name, (low, high) in lm.OBJECTIVES.items())
    header = ("method", "objective", "measure", "minus its base", "p", "p, Holm", "Cohen's d", "p, equivalence")
    note = (
        f"Bases: {', '.join(f'{base} of {method}' for method, base in PAIRS.items())}. Two-sided paired t-test over "
        f"common seeds; Holm's correction over all {len(rows)} rows. Equivalence: two one-sided tests (TOST), margins "
        f"{margins}, which is {MARGIN:.0%} of the range, set beforehand; not corrected."
    )
    return summary.Table("With SAW and without", header, rows, left=3, note=note)


def welch(lean: Sequence[float], pipeline: Sequence[float]) -> tuple[float, float, float, float]:
    """Difference of two means, its 95 % interval, and p, without assuming equal spread (Welch)."""
    found = stats.ttest_ind(lean, pipeline, equal_var=False)
    interval = found.confidence_interval(0.95)
    return fmean(lean) - fmean(pipeline), float(interval.low), float(interval.high), float(found.pvalue)


def values_of(runs: Sequence[LoggedRun], objective: str) -> dict[str, list[float]]:
    """The measures that compare the two trainers: the first step's mean reward, and others; one value per run."""
    return {
        "step 1": [run.history.of(objective, "mean")[0] for run in runs],
        **{name: [measure(run, objective) for run in runs] for name, measure in MEASURES.items()},
    }


def agreement(lean: Groups, pipeline: Groups) -> summary.Table:
    """Means and spread of both trainers, per method, objective and measure."""
    rows = [
        (method, objective, measure, own, values_of(pipeline[method], objective)[measure])
        for method in lean
        for objective in lm.OBJECTIVES
        for measure, own in values_of(lean[method], objective).items()
    ]
    tests = [welch(own, other) for *_, own, other in rows]
    corrected = multipletests([p for *_, p in tests], method="holm")[1]
    shown = tuple(
        (
            *(method, objective, measure),
            *(f"{fmean(values):.3f} ± {stdev(values):.3f} (n = {len(values)})" for values in (other, own)),
            f"{gap:z.3f} [{low:z.3f}, {high:z.3f}]",
            f"{p:.3g}",
            f"{holm:.3g}",
        )
        for (method, objective, measure, own, other), (gap, low, high, p), holm in zip(
            rows, tests, corrected, strict=True
        )
    )
    header = ("method", "objective", "measure", "pipeline", "lean", "lean minus pipeline", "p", "p, Holm")
    note = (
        "Mean ± standard deviation over seeds. Welch's t-test and its 95 % interval; Holm's correction over all rows."
    )
    return summary.Table("Means", header, shown, left=3, note=note)


def curve_distance(lean: Sequence[LoggedRun], pipeline: Sequence[LoggedRun], objective: str) -> tuple[float, float]:
    """Root mean square distance of two mean curves, and how often a random division of the runs is as far apart.

    Returns:
        tuple[float, float]: the distance, in units of the reward, and p (permutation test).
    """
    curves = np.array([run.history.of(objective, "mean") for run in (*pipeline, *lean)])
    split = len(pipeline)

    def distance(order: np.ndarray) -> float:
        ordered = curves[order]
        return float(np.sqrt(np.mean((ordered[:split].mean(axis=0) - ordered[split:].mean(axis=0)) ** 2)))

    rng = np.random.default_rng(0)
    seen = distance(np.arange(len(curves)))
    further = sum(distance(rng.permutation(len(curves))) >= seen * (1 - 1e-12) for _ in range(DIVISIONS))
    return seen, (further + 1) / (DIVISIONS + 1)


def curves(lean: Groups, pipeline: Groups) -> summary.Table:
    """:func:`curve_distance` of every method and objective."""
    found = {
        (method, objective): curve_distance(lean[method], pipeline[method], objective)
        for method in lean
        for objective in lm.OBJECTIVES
    }
    corrected = multipletests([p for _, p in found.values()], method="holm")[1]
    rows = tuple(
        (*place, f"{distance:.3f}", f"{p:.3g}", f"{holm:.3g}")
        for (place, (distance, p)), holm in zip(found.items(), corrected, strict=True)
    )
    header = ("method", "objective", "distance of the mean curves", "p", "p, Holm")
    note = (
        "Root mean square over the steps, in units of the reward. p: permutation test, the share of random divisions "
        f"of all runs into two sets of these sizes that are at least as far apart ({DIVISIONS} divisions)."
    )
    return summary.Table("Learning curves of both trainers", header, rows, left=2, note=note)


def seconds(runs: Sequence[LoggedRun]) -> list[float]:
    """Seconds of each run's steps."""
    return [sum(run.history.columns["timing_s/step"]) for run in runs]


def origin(runs: Sequence[LoggedRun], last: int, *options: str) -> str:
    """The line of the page that says how its numbers were made; ``last`` is the last step of each training."""
    times = seconds(runs)
    trained = f"{len(runs)} trainings, {last} steps of each, {min(times):.0f} to {max(times):.0f} s in one thread"
    command = " ".join(["bash scripts/study.sh lean", *options])
    return f"`{command}`; {trained}; commits in steps.csv; {lm.trained_on(runs)}."


def origin_against(own: Path, pipeline: Path) -> str:
    """As :func:`origin`, for the comparison of two folders."""
    folders = [Path(os.path.relpath(path)) for path in (own, pipeline)]
    command = f"bash scripts/study.sh lean --out {folders[0]} --against {folders[1]}"
    runs = [run for folder in (own, pipeline) for group in read_groups(folder).values() for run in group]
    return f"`{command}`; {len(runs)} trainings, seeds and commits in steps.csv of each folder; {lm.trained_on(runs)}."


def read_groups(out: Path) -> dict[str, list[LoggedRun]]:
    """The runs of ``steps.csv`` by method.

    Raises:
        SystemExit: if there is no such file, or it is not what a study writes; or if a method has one seed, for which
            there is no spread, or a seed twice.
    """
    file = out / "steps.csv"
    if not file.is_file():
        raise SystemExit(f"{out} has no steps.csv; expected the folder of a study (--out)")
    try:
        read = lm.read_steps(file)
    except (KeyError, StopIteration, TypeError, ValueError) as fault:
        raise SystemExit(f"{file} is not what this study or study.sh lm writes ({fault!r})") from None
    groups = {name: read[name] for name in METHODS if name in read}
    if not groups:
        raise SystemExit(f"{file} has no training of {', '.join(METHODS)}")
    for name, runs in groups.items():
        seeds = [run.seed for run in runs]
        if len(runs) < 2:
            raise SystemExit(f"{file} has one training of {name}; a report needs at least two seeds")
        if len(set(seeds)) < len(seeds):
            raise SystemExit(f"{file} has a seed of {name} twice (seeds {seeds}); keep one training of each")
    if len(steps := {run.history.steps for runs in groups.values() for run in runs}) > 1:
        raise SystemExit(f"{file} has trainings of {sorted(map(len, steps))} steps; expected the same steps in each")
    return groups


def report(out: Path) -> str:
    """Tables and figures from ``steps.csv``; returns the text of ``README.md`` without its provenance."""
    groups = read_groups(out)
    shown = [summary.summary(groups, lm.THRESHOLDS), verdicts(groups), lm.learned_at(groups), lm.signal(groups)]
    drawn = [
        (f"{kind}_{base}", what, {name: runs for name, runs in groups.items() if name.endswith(base)})
        for base in ("grpo", "gdpo")
        for kind, what in (("rewards", "mean"), ("weights", "weight"))
    ]
    return written("The small language model with more seeds, in the lean trainer", shown, drawn, out)


def report_against(own: Path, pipeline: Path) -> str:
    """As :func:`report`, for the distance between the curves of two ``steps.csv``; the figures go to the pipeline's."""
    recorded = read_groups(pipeline)
    groups = {name: runs for name, runs in read_groups(own).items() if name in recorded}
    if not groups:
        raise SystemExit(f"{own} and {pipeline} have no method in common")
    lengths = [len(runs[0].history.steps) for runs in (*groups.values(), *recorded.values())]
    if len(set(lengths)) > 1:
        raise SystemExit(f"the trainings in {own} have {lengths[0]} steps, those in {pipeline} {lengths[-1]}")
    drawn = [
        (f"trainers_{name}", "mean", {f"{name}, pipeline": recorded[name], f"{name}, lean trainer": runs})
        for name, runs in groups.items()
    ]
    shown = [agreement(groups, recorded), curves(groups, recorded)]
    return written("The lean trainer against the pipeline", shown, drawn, pipeline)


def written(title: str, shown: Sequence[summary.Table], drawn: Sequence[tuple[str, str, Groups]], out: Path) -> str:
    """Draw the figures (name, metric of an objective, runs), and return the text of the page."""
    text = [f"# {title}", *(table.section() for table in shown)]
    for name, what, groups in drawn:
        if groups:
            figures.plot_family(groups, {what: figures.ROWS[what]}, out / name, title)
            text.append(f"![{name}]({name}.png)")
    return "\n\n".join(text)


def train_all(arguments: argparse.Namespace, home: Path, runs: Path, words: str) -> None:
    """Do the trainings that are not finished; ``words`` is the command, for their records."""
    settings = settings_of(compose("experiment=study", "platform=cpu", *arguments.overrides))
    run_all(sweep.toys("study"), {}, lambda: None)
    rows = pd.read_parquet(home / "quickstart" / "data" / "train.parquet").to_dict("records")
    for seed in arguments.seeds:  # all methods of a seed first, so that an interrupted set still has its pairs
        for method in arguments.method or METHODS:
            folder = runs / f"{method}_seed{seed}"
            if (folder / LOG).exists():
                continue
            train(replace(settings, method=method, seed=seed), home / "study_toys" / "model", rows, folder, words)
            print(f"{folder.name}: {seconds([read_run(folder)])[0]:.1f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(SEEDS), metavar="1,2,3", help="(1 to 20)")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated (all)")
    parser.add_argument("--out", type=Path, default=Path("results/study/lean"), help="for CSV, tables and figures")
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="only compare with the pipeline's trainings in it"
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is finished")
    parser.add_argument("--train-only", action="store_true", help="train, report nothing")
    parser.add_argument("overrides", nargs="*", type=checked_override, metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args(argv)
    if arguments.overrides and (arguments.report_only or arguments.against):
        parser.error(f"{arguments.overrides[0]!r} is a setting of a training; --report-only and --against do none")
    if arguments.against and arguments.against.resolve() == arguments.out.resolve():
        parser.error(f"--against is {arguments.against}, which is --out; expected the folder of study.sh lm")
    refuse_own(parser, arguments.overrides, sweep.TOLD_APART_IN_A_STUDY)
    torch.set_num_threads(1)
    home = Path(os.environ.get("SAW_RUNS", "runs")).resolve()
    runs = home / "study_lean"
    if arguments.against:
        text = report_against(arguments.out, arguments.against)
        (arguments.against / AGAINST).write_text(f"{text}\n\n{origin_against(arguments.out, arguments.against)}\n")
        print(text)
        return
    if not arguments.report_only:
        words = f"bash scripts/study.sh lean {' '.join(sys.argv[1:] if argv is None else argv)}".strip()
        try:
            train_all(arguments, home, runs, words)
        except (NotComposed, Unsupported) as fault:
            parser.error(str(fault))
    if arguments.train_only:
        return
    finished = [read_run(log.parent) for log in sorted(runs.glob(f"*/{LOG}"))]
    if not finished:
        raise SystemExit(f"{runs} has no finished training")
    arguments.out.mkdir(parents=True, exist_ok=True)
    last = lm.write_steps(finished, arguments.out / "steps.csv", KEPT)
    text = report(arguments.out)
    (arguments.out / "README.md").write_text(f"{text}\n\n{origin(finished, last, *arguments.overrides)}\n")
    print(text)


if __name__ == "__main__":
    run_main(main)
