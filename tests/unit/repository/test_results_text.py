"""Every figure in the results' text is recomputed from the data beside it.

An entry of :data:`FIGURES` is a piece of text with a gap per figure, and a function that computes the figures. A number
in the text that no entry covers, and that is not a setting (:data:`SETTINGS`), fails as well.
"""

import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from benchmarks import step as step_benchmark
from recipes.study import language_model, lean_study, smollm2_study, tabular_methods
from recipes.tldr import table as table2
from recipes.toolrl import table as table1
from saw.report import read_history, summary, summary_table
from saw.report.seed_statistics import PairedTest, bootstrap_median, paired_tests
from tests.conftest import ROOT

RESULTS = ROOT / "results"
SMOL = "results/smollm2/README.md"
README, STEP, JUDGE = "results/README.md", "results/step_benchmark/README.md", "results/judge_benchmark/README.md"
REWARDS, ADVANTAGES = "results/reward_benchmark/README.md", "results/advantage_benchmark/README.md"

FINAL = f"last {summary.LAST} steps"

# ------------------------------------------------------------------ the data


@cache
def table(name: str) -> list[dict[str, str]]:
    return pd.read_csv(RESULTS / f"{name}.csv", dtype=str, keep_default_na=False).to_dict("records")


def cell(name: str, column: str, **where: str) -> float:
    """The one cell of a CSV of the tabular study."""
    rows = [row for row in table(f"study/tabular/{name}") if all(row[key] == value for key, value in where.items())]
    assert len(rows) == 1, f"{name}.csv: {len(rows)} rows with {where}"
    return float(rows[0][column])


def speeds(column: str, *methods: str) -> list[float]:
    return [cell("speeds", column, method=method) for method in methods]


def odd(case: str, family: str, objective: str) -> tuple[float, float]:
    """Steps to learn an objective beside an odd one: with equal weights, and SAW's difference from that."""
    (case,) = {row["case"] for row in table("study/tabular/misleading") if row["case"].startswith(case)}
    columns = f"{objective}_steps_{family}", f"{objective}_difference"
    base, gap = (cell("misleading", column, case=case, family=family) for column in columns)
    return base, gap


def same(column: str, world: str, family: str, against: str = "equal weights") -> float:
    (world,) = {row["world"] for row in table("study/tabular/falsifier") if world in row["world"]}
    return cell("falsifier", column, world=world, family=family, against=against)


def every(situation: str, *methods: str) -> list[float]:
    """Steps until everything is learned in one of the seven situations."""
    return [cell("methods", "steps", situation=situation, method=method) for method in methods]


MEAN_WEIGHTS = "static weights, SAW's mean"


def batch(column: str, samples: int, method: str = "saw_gdpo") -> float:
    return cell("batch_size", column, samples=str(samples), method=method)


def less_error(samples: int, method: str) -> float:
    """How much lower the error of the weights is than plain SAW's, in per cent."""
    own, plain = (batch("weight_error", samples, name) for name in (f"saw_gdpo, {method}", "saw_gdpo"))
    return 100 * (1 - own / plain)


def kept_gain(samples: int) -> float:
    """The late objective's gain in steps with the EMA, in per cent of plain SAW's."""
    names = ("gdpo", "saw_gdpo", "saw_gdpo, ema 0.8")
    equal, saw, smoothed = (batch("late_steps", samples, name) for name in names)
    return 100 * (equal - smoothed) / (equal - saw)


def largest_floor_shift() -> float:
    own = {row["samples"] for row in table("study/tabular/batch_size")}
    names = ("saw_gdpo", "saw_gdpo, floor 0.2")
    return max(abs(np.diff([batch("late_steps", int(samples), name) for name in names])[0]) for samples in own)


def of_window(column: str, prompts: int, *sources: str) -> list[float]:
    """For each source of the weights, GRPO's and GDPO's."""
    return [
        cell("window", column, prompts=str(prompts), family=family, source=source)
        for source in sources
        for family in ("grpo", "gdpo")
    ]


def last_16(column: str) -> list[float]:
    """With the weights of the last 16 batches minus with those of each batch: of both families at every size."""
    sizes = sorted({int(row["prompts"]) for row in table("study/tabular/window")})
    if column == "both_less_batch":
        return [value for size in sizes for value in of_window(column, size, "last 16 batches")]
    pairs = [of_window(column, size, "last 16 batches", "this batch") for size in sizes]
    return [value - other for pair in pairs for value, other in zip(pair[:2], pair[2:], strict=True)]


def ends(name: str, *columns: str) -> tuple[float, float]:
    values = [float(row[column]) for row in table(f"study/tabular/{name}") for column in columns]
    return min(values, key=abs), max(values, key=abs)


@cache
def trainings(name: str = "steps") -> dict[str, list]:
    groups = language_model.read_steps(RESULTS / "study" / "lm" / f"{name}.csv")
    return {label: groups[label] for label in language_model.METHODS if label in groups}


def area(run, objective: str) -> float:
    """Area under an objective's mean reward, by trapezoids, per step."""
    values = run.history.of(objective, "mean")
    return statistics.fmean((a + b) / 2 for a, b in pairwise(values))


def plain_mean(run, objective: str) -> float:
    return float(np.mean(run.history.of(objective, "mean")))


@cache
def against(base: str, measure: Callable[..., float] = area) -> dict[tuple[str, str], PairedTest]:
    """Every method of a family against its base, as in the report's table."""
    gaps = {}
    for label, runs in trainings().items():
        if base in label and label != base:
            for objective in language_model.OBJECTIVES:
                first = {run.seed: measure(run, objective) for run in trainings()[base]}
                own = sorted(runs, key=lambda run: run.seed)
                gaps[label, objective] = [measure(run, objective) - first[run.seed] for run in own]
    return paired_tests(gaps)


def gain(label: str, objective: str, measure: Callable[..., float] = area) -> PairedTest:
    return against("grpo" if "grpo" in label else "gdpo", measure)[label, objective]


def loss(label: str, objective: str) -> list[str]:
    """The loss at the end, with its interval and p."""
    test = gain(label, objective, summary.final)
    ends = (-test.difference.mean, -test.difference.high, -test.difference.low)
    return [*(f"{value:z.2f}" for value in ends), f"{test.p:.2f}"]


def learned(label: str, objective: str) -> str:
    return f"{np.median([language_model._learned_at(run.history, objective) for run in trainings()[label]]):.0f}"


def early(what: str, steps: int, objective: str, *labels: str) -> float:
    """Mean of a metric over the first steps and the runs."""
    return statistics.fmean(
        value for label in labels for run in trainings()[label] for value in run.history.of(objective, what)[:steps]
    )


def format_weights(*labels: str) -> tuple[float, float]:
    """Smallest and largest weight of format in any step."""
    values = [value for label in labels for run in trainings()[label] for value in run.history.of("format", "weight")]
    return min(values), max(values)


def final_format() -> list[float]:
    return [statistics.fmean(summary.final(run, "format") for run in runs) for runs in trainings().values()]


def rank(signal: str, objective: str | None = None) -> list[float]:
    """Per method, the correlation of a signal with the later gain, over both objectives or within one."""
    found = []
    for runs in trainings().values():
        of_seeds = []
        for run in runs:
            pairs = [
                _signal_and_gain(run, name, signal)
                for name in ([objective] if objective else language_model.OBJECTIVES)
            ]
            of_seeds.append(stats.spearmanr(*np.concatenate(pairs, axis=1)).statistic)
        found.append(statistics.fmean(of_seeds))
    return found


def _signal_and_gain(run, name: str, signal: str) -> np.ndarray:
    low, high = language_model.OBJECTIVES[name]
    mean = np.array(run.history.of(name, "mean"))
    smooth = np.convolve(mean, np.ones(language_model.SMOOTH) / language_model.SMOOTH, mode="valid")
    gained = (smooth[language_model.AHEAD :] - smooth[: -language_model.AHEAD]) / (high - low)
    values = {
        "cv": np.array(run.history.of(name, "cv")),
        "mean": -(mean - low) / (high - low),
        "steps left": -np.array(run.history.steps, dtype=float),
        "spread": 1 - np.array(run.history.of(name, "zero_spread")),
    }[signal]
    return np.stack([values[: len(gained)], gained])


def cv_and_spread() -> list[float]:
    text = {row[0]: row for row in language_model.signal(trainings()).rows}
    return [float(row[2].split()[0]) for row in text.values()]


def minutes(seed: int) -> float:
    """Minutes for the steps of a seed, two trainings at a time."""
    runs = [run for label in language_model.DEFAULT_METHODS for run in trainings()[label] if run.seed == seed]
    return sum(sum(run.history.columns["timing_s/step"]) for run in runs) / 2 / 60


def trained_again(name: str) -> float:
    saw, plain = (
        next(area(run, "correctness") for run in trainings(name)[label] if run.seed == 1)
        for label in ("saw_gdpo", "gdpo")
    )
    return plain - saw


# the same model with more seeds, in the lean trainer
@cache
def lean(folder: str = "lean") -> dict[str, list]:
    return language_model.read_steps(RESULTS / "study" / folder / "steps.csv")


def lean_seeds(folder: str = "lean") -> int:
    """The number of seeds, which all methods have."""
    (number,) = {len(runs) for runs in lean(folder).values()}
    return number


@cache
def lean_tests() -> dict:
    return lean_study.comparisons(lean())


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def lean_gap(method: str, objective: str, measure: str) -> list[str]:
    """Difference from the base, its interval, and p by Holm."""
    test, _ = lean_tests()[method, objective, measure]
    gap = test.difference
    return [*(f"{value:z.3f}" for value in (gap.mean, gap.low, gap.high)), p_value(test.p_corrected)]


def lean_gaps(objective: str, *measures: str) -> list[str]:
    return [
        value for measure in measures for method in lean_study.PAIRS for value in lean_gap(method, objective, measure)
    ]


def lean_same(objective: str, measure: str) -> list[str]:
    """p of the tests for equivalence."""
    return [p_value(lean_tests()[method, objective, measure][1]) for method in lean_study.PAIRS]


def lean_mean(objective: str, steps: slice, *methods: str) -> float:
    """Mean reward over some steps and all seeds of some methods."""
    return statistics.fmean(
        value for name in methods for run in lean()[name] for value in run.history.of(objective, "mean")[steps]
    )


def lean_lowest(method: str) -> float:
    """The lowest mean of correctness over five steps, all seeds."""
    means = np.mean([run.history.of("correctness", "mean") for run in lean()[method]], axis=0)
    return float(np.convolve(means, np.ones(5) / 5, "valid").min())


def lean_learned(method: str) -> str:
    steps = [language_model._learned_at(run.history, "format") for run in lean()[method]]
    return f"{np.median([step for step in steps if np.isfinite(step)]):.0f}"


@cache
def trainers(what: str) -> list[float]:
    """Every p of a table that compares the two trainers."""
    found = getattr(lean_study, what)(lean(), lean("same_start"))
    return [float(row[found.header.index("p")]) for row in found.rows]


# SmolLM2
@cache
def smol() -> dict[str, list]:
    return smollm2_study.read(RESULTS / "smollm2" / "study")


def smol_held_out(objective: str) -> list[str]:
    """Mean reward on held-out questions before the training, and after it with each method."""

    def mean(groups: list[list], step: int) -> float:
        return statistics.fmean(run.validation[step][f"saw-val/{objective}/mean"] for runs in groups for run in runs)

    return three(mean(list(smol().values()), 0), *(mean([runs], 12) for runs in smol().values()))


def smol_tests() -> list[dict[str, str]]:
    """Each comparison of the study's page, by its column; the smallest p first."""
    tables = (
        summary.tests({name: runs for name, runs in smol().items() if base in name}, base) for base in ("grpo", "gdpo")
    )
    rows = [dict(zip(table.header, row, strict=True)) for table in tables for row in table.rows]
    return sorted(rows, key=lambda row: float(row["p"]))


@cache
def timed() -> list[dict]:
    return step_benchmark.read(RESULTS / "step_benchmark" / "steps.csv")


WEIGHING = [name for name in step_benchmark.CASES if "gradient" not in name]


def seconds(part: str, method: str) -> float:
    return statistics.median(row[part] for row in timed() if row["method"] == method)


def over_grpo(method: str) -> list[float]:
    of = {name: [row["step"] for row in timed() if row["method"] == name] for name in ("grpo", method)}
    ratios = [100 * (own / base - 1) for own, base in zip(of[method], of["grpo"], strict=True)]
    found = bootstrap_median(ratios)
    return [found.mean, found.low, found.high]


def printed(file: str) -> list[list[str]]:
    """The rows of the table that a benchmark printed."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line.startswith("| ")]
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in lines[1:]]


def advantage(size: str, objectives: int, memory: str, case: str) -> float:
    """Milliseconds."""
    (row,) = [row for row in printed(ADVANTAGES) if row[:4] == [size, str(objectives), memory, case]]
    return float(row[4])


def ours_and_verls(size: str, memory: str) -> list[float]:
    """Milliseconds of saw_gdpo and of verl's vectorised GRPO, for K = 2 and then for K = 8."""
    return [advantage(size, k, memory, case) for k in (2, 8) for case in ("saw saw_gdpo", "verl grpo_vectorized")]


def reward_times() -> list[float]:
    """Time for 1 MB over time for 100 kB."""
    times = [float(row[2]) for row in printed(REWARDS)]
    return [last / before for before, last in zip(times[-6:-3], times[-3:], strict=True)]


def paper(lines: str, column: int) -> list[str]:
    """The figures of a row of docs/papers.md."""
    text = (ROOT / "docs" / "papers.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {lines}")]
    return re.findall(r"\+[\d.]+", row.split("|")[column])


# ------------------------------------------------------------------ the text


@dataclass(frozen=True)
class Figure:
    """A piece of text, and the figures for its gaps.

    Attributes:
        file (str): the file with the text.
        text (str): with one ``{}`` per figure; a blank also matches a line break.
        values (Callable[[], list[str]]): computes the figures from the data.
    """

    file: str
    text: str
    values: Callable[[], list[str]]

    def right(self) -> str:
        values = self.values()
        assert len(values) == self.text.count("{}")
        return self.text.format(*values)

    def pattern(self) -> str:
        return r"(\S+?)".join(map(re.escape, self.text.split("{}"))) + r"(?=$|[^\d])"


def whole(*values: float) -> list[str]:
    return [f"{value:.0f}" for value in values]


def one(*values: float) -> list[str]:
    return [f"{value:.1f}" for value in values]


def two(*values: float) -> list[str]:
    return [f"{value:.2f}" for value in values]


def three(*values: float) -> list[str]:
    return [f"{value:.3f}" for value in values]


def beside_odd(case: str) -> list[str]:
    """Steps with SAW and with equal weights, of the odd objective and of the good one, under GDPO and then GRPO."""
    pairs = [odd(case, family, objective) for family in ("gdpo", "grpo") for objective in ("other", "good")]
    return whole(*(value for base, gap in pairs for value in (base + gap, base)))


def lowest_to_highest(values: list[float]) -> list[str]:
    return two(min(values), max(values))


FIGURES = [
    # --- tabular: every method
    Figure(
        README,
        "with {} steps instead of {} (`gdpo`) for a late objective and {} instead of {} for a rare one",
        lambda: whole(*every("late objective", "saw_gdpo", "gdpo"), *every("rare", "saw_gdpo", "gdpo")),
    ),
    Figure(
        README,
        "late, rare and conflicting objectives ({}, {} and {} steps)",
        lambda: whole(*(every(name, "tchebycheff")[0] for name in ("late objective", "rare", "conflicting"))),
    ),
    Figure(README, "with a reward that is luck it needs {} steps.", lambda: whole(*every("luck", "tchebycheff"))),
    Figure(
        README,
        "not `saw_gdpo` ({} steps instead of {} with `mo_grpo`)",
        lambda: whole(*every("luck", "saw_gdpo", "mo_grpo")),
    ),
    Figure(
        README,
        "learned after {} steps instead of {}, with `grpo` after {} instead of {}",
        lambda: whole(*every("gate", "gdpo", "gdpo, no condition", "grpo", "grpo, no condition")),
    ),
    Figure(README, "by chance: {} steps for a late objective", lambda: whole(*every("late objective", "gd2po"))),
    Figure(
        README,
        "needs {} steps for conflicting rewards, `grpo` {}:",
        lambda: whole(*every("conflicting", "corr_grpo", "grpo")),
    ),
    # --- tabular: speeds
    Figure(
        "README.md",
        "reaches 0.9 after {} steps instead of {} (GDPO), while the early one needs {} instead of {}",
        lambda: whole(
            *speeds("late_steps", "saw_gdpo", "gdpo"),
            *speeds("early_steps", "saw_gdpo", "gdpo"),
        ),
    ),
    Figure(
        README,
        "reaches 0.9 after {} instead of {} steps (GRPO), {} instead of {} (GDPO)",
        lambda: whole(*speeds("late_steps", "saw_grpo", "grpo", "saw_gdpo", "gdpo")),
    ),
    Figure(
        README,
        "the early objective takes {} instead of {} steps (GRPO), {} instead of {} (GDPO), and ends at {} and {} "
        "instead of {}.",
        lambda: [
            *whole(*speeds("early_steps", "saw_grpo", "grpo", "saw_gdpo", "gdpo")),
            *three(*speeds("early_final", "saw_grpo", "saw_gdpo", "grpo")),
        ],
    ),
    Figure(
        README,
        "they delay the late objective ({} and {} steps instead of {} and {} with equal weights)",
        lambda: whole(*speeds("late_steps", "random_grpo", "random_gdpo", "grpo", "gdpo")),
    ),
    Figure(
        README,
        "match SAW on the late objective ({} and {}), delay the early one less ({} and {}) and leave it lower at the "
        "end (by {} and {})",
        lambda: [
            *whole(*speeds("late_steps", "static_grpo 1:3", "static_gdpo 1:3")),
            *whole(*speeds("early_steps", "static_grpo 1:3", "static_gdpo 1:3")),
            *three(
                -float(np.diff(speeds("early_final", "saw_grpo", "static_grpo 1:3"))[0]),
                -float(np.diff(speeds("early_final", "saw_gdpo", "static_gdpo 1:3"))[0]),
            ),
        ],
    ),
    Figure(
        README,
        "(late after {} instead of {} steps, early after {} instead of {})",
        lambda: [
            *whole(*speeds("late_steps", "saw_gdpo, normalised_variance", "saw_gdpo")),
            *whole(*speeds("early_steps", "saw_gdpo, normalised_variance", "saw_gdpo")),
        ],
    ),
    Figure(
        README,
        "from equal weights (late {}, early {}).",
        lambda: whole(*(cell("speeds", f"{k}_steps", method="saw_gdpo, range_std") for k in ("late", "early"))),
    ),
    Figure(
        README,
        "of groups with spread delay the late objective ({} and {} steps).",
        lambda: whole(*speeds("late_steps", "saw_gdpo, advantage_entropy", "saw_gdpo, group_spread")),
    ),
    # --- tabular: CV as a signal
    Figure(
        README,
        "CV with the later gain {} to {}, within one objective {} to {}; CV with the share of groups that still have "
        "spread {} to {}.",
        lambda: two(
            *ends("signal", "both"), *ends("signal", "within_early", "within_late"), *ends("signal", "with_spread")
        ),
    ),
    # --- tabular: where CV misleads
    Figure(
        README,
        "helps: {} steps instead of {} (GDPO), {} instead of {} (GRPO)",
        lambda: whole(
            sum(odd("already", "gdpo", "good")),
            odd("already", "gdpo", "good")[0],
            sum(odd("already", "grpo", "good")),
            odd("already", "grpo", "good")[0],
        ),
    ),
    Figure(
        README,
        "trades: it is learned after {} steps instead of {}, the good one after {} instead of {} (GDPO); {} instead of "
        "{}, and {} instead of {} (GRPO)",
        lambda: beside_odd("rare"),
    ),
    Figure(
        README,
        "hurts: {} steps instead of {} (GDPO), {} instead of {} (GRPO)",
        lambda: whole(
            *(
                value
                for family in ("gdpo", "grpo")
                for base, gap in [odd("noise that cannot be learned, 1 in 10", family, "good")]
                for value in (base + gap, base)
            )
        ),
    ),
    Figure(
        README,
        "starves it: {} steps instead of {}, the good one {} instead of {} (GDPO); {} instead of {}, and {} instead of "
        "{} (GRPO)",
        lambda: beside_odd("large"),
    ),
    # --- tabular: falsifier
    Figure(
        README,
        "The difference is {} steps under GRPO (margin ±{}) and {} under GDPO (margin ±{}).",
        lambda: two(*(same(column, "twice", f) for f in ("grpo", "gdpo") for column in ("difference", "margin"))),
    ),
    Figure(
        README,
        "equivalent to static weights at SAW's mean ({} steps, margin ±{}), SAW-GDPO is not ({} steps more than {}). "
        "Both are slower than equal weights, by {} and {} steps.",
        lambda: [
            *two(*(same(column, "offset", "grpo", MEAN_WEIGHTS) for column in ("difference", "margin"))),
            f"{same('difference', 'offset', 'gdpo', MEAN_WEIGHTS):.1f}",
            *whole(same("margin", "offset", "gdpo", MEAN_WEIGHTS) / 0.02),
            *whole(*(same("difference", "offset", family) for family in ("grpo", "gdpo"))),
        ],
    ),
    # --- tabular: batch size
    Figure(
        README,
        "error of the weights: {} with 8 samples per step, {} with 32, {} with 128.",
        lambda: two(*(batch("weight_error", samples) for samples in (8, 32, 128))),
    ),
    Figure(
        README,
        "still gains with 8 ({} steps instead of {})",
        lambda: whole(batch("late_steps", 8), batch("late_steps", 8, "gdpo")),
    ),
    Figure(
        README,
        "An EMA of 0.8 lowers the error by {} % with 64 samples, {} % with 128 and {} % with 512; with 8, it raises "
        "the error by {} % and keeps {} % of the gain. A floor of 0.2 lowers the error by {} % with 8 and raises it "
        "by {} % with 512.",
        lambda: whole(
            *(less_error(samples, "ema 0.8") for samples in (64, 128, 512)),
            -less_error(8, "ema 0.8"),
            kept_gain(8),
            less_error(8, "floor 0.2"),
            -less_error(512, "floor 0.2"),
        ),
    ),
    Figure(
        README,
        "shifts the late objective by less than {} step",
        lambda: ["a" if largest_floor_shift() < 1 else f"{largest_floor_shift():.1f}"],
    ),
    # --- tabular: statistics over the last batches
    Figure(
        README,
        "of the last 4 or 16 batches. With 8 prompts of 4 samples, the error of the weights falls from {} and {} to {} "
        "and {} with the last 16 batches, and to {} and {} with an EMA of 0.9.",
        lambda: two(*of_window("weight_error", 8, "this batch", "last 16 batches", "ema 0.9")),
    ),
    Figure(
        README,
        "With the last 16 batches, both objectives are learned {} to {} steps sooner at every size from 2 to 32 "
        "prompts, the early one up to {} steps later, and the final reward is at most {} lower.",
        lambda: [
            *one(*sorted(-value for value in last_16("both_less_batch"))[:: len(last_16("both_less_batch")) - 1]),
            *one(max(last_16("early_steps"))),
            *three(-min(last_16("final_reward"))),
        ],
    ),
    Figure(
        README,
        "An EMA of 0.9 delays both by {} and {} steps with 2 prompts, and by {} and {} with 8; with 32 it does what "
        "the window does ({} and {} steps apart). So leave `ema` off with fewer than 16 prompts.",
        lambda: [
            *whole(*of_window("both_less_batch", 2, "ema 0.9"), *of_window("both_less_batch", 8, "ema 0.9")),
            *one(*of_window("both_less_ema", 32, "last 16 batches")),
        ],
    ),
    # --- the language model
    Figure(
        README,
        "Correctness (range -3 to 3) loses {} (SAW-GRPO, p {}) and {} (SAW-GDPO, p {}, Holm {}) of the area under its "
        "curve. At the end it loses {} [{}, {}] (p {}) and {} [{}, {}] (p {}).",
        lambda: [
            *two(-gain("saw_grpo", "correctness").difference.mean, gain("saw_grpo", "correctness").p),
            *two(-gain("saw_gdpo", "correctness").difference.mean),
            f"{gain('saw_gdpo', 'correctness').p:.3f}",
            *two(gain("saw_gdpo", "correctness").p_corrected),
            *(value for label in ("saw_grpo", "saw_gdpo") for value in loss(label, "correctness")),
        ],
    ),
    Figure(
        README,
        "has a CV of {} at the first step (correctness {}). So it gets {} and {} of the weight in the first ten steps",
        lambda: [
            *whole(early("cv", 1, "format", "saw_grpo", "saw_gdpo")),
            f"{early('cv', 1, 'correctness', 'saw_grpo', 'saw_gdpo'):.1f}",
            *two(*(early("weight", 10, "format", label) for label in ("saw_grpo", "saw_gdpo"))),
        ],
    ),
    Figure(
        README,
        "with seed 1, SAW-GDPO lost {} instead of {}",
        lambda: three(trained_again("again"), trained_again("steps")),
    ),
    Figure(
        README,
        "(the area of format changes by {} and {}), nor do gradient-based weights. With these it changes by {} and {} "
        "at the released learning rate, at which the weights stay at one half, and by {} and {} at ten times that "
        "rate.",
        lambda: three(
            *(
                gain(f"{method}_{family}{mark}", "format").difference.mean
                for method, mark in (("random", ""), ("gradient", ""), ("gradient", ", lr=1e-5"))
                for family in ("grpo", "gdpo")
            )
        ),
    ),
    Figure(
        README,
        "pipeline:** CV with the later gain {} to {}, and with the share of groups with spread {} to {}.",
        lambda: [*lowest_to_highest(rank("cv")), *lowest_to_highest(cv_and_spread())],
    ),
    Figure(
        README,
        "(as a share of its range, sign reversed) has {} to {} with the gain. - **Within format**, the mean is as good "
        "a signal as CV, because CV is a function of it: both have {} to {} with the gain. The number of steps left "
        "has {} to {}. - **Within correctness**, CV has {} to {}, the mean {} to {}.",
        lambda: [
            *lowest_to_highest(rank("mean")),
            *lowest_to_highest(rank("cv", "format")),
            *lowest_to_highest(rank("steps left", "format")),
            *lowest_to_highest(rank("cv", "correctness")),
            *lowest_to_highest(rank("mean", "correctness")),
        ],
    ),
    Figure(
        README,
        "| correctness | {} | {} | {} | {} | | format | {} | {} | {} | {} |",
        lambda: [
            learned(method, objective)
            for objective in ("correctness", "format")
            for method in ("grpo", "saw_grpo", "gdpo", "saw_gdpo")
        ],
    ),
    Figure(
        README,
        "rises by {} (SAW-GRPO, p {}, Holm over eight comparisons {}; with the plain mean of the steps {}) and {} "
        "(SAW-GDPO, p {}, Holm {}). All methods end at {} to {}.",
        lambda: [
            *three(gain("saw_grpo", "format").difference.mean),
            f"{gain('saw_grpo', 'format').p:.3f}",
            *three(gain("saw_grpo", "format").p_corrected, gain("saw_grpo", "format", plain_mean).p_corrected),
            *three(gain("saw_gdpo", "format").difference.mean),
            *two(gain("saw_gdpo", "format").p, gain("saw_gdpo", "format").p_corrected),
            *lowest_to_highest(final_format()),
        ],
    ),
    Figure(README, "Holm over {} comparisons", lambda: [{8: "eight"}.get(n := len(against("grpo")), str(n))]),
    Figure(
        README,
        "the steps of a seed took {} to {} minutes",
        lambda: whole(min(map(minutes, range(1, 6))), max(map(minutes, range(1, 6)))),
    ),
    # --- the language model with more seeds
    Figure(README, "a [small language model](study/lean), {} seeds,", lambda: [str(lean_seeds())]),
    Figure(
        README,
        "[lean trainer](study/lean), {} seeds:** correctness begins near its plateau, with {} at the first step; it "
        "ends at {} (GRPO) and {} (GDPO), the mean of the last five. With SAW it changes by: "
        "| correctness | SAW-GRPO | SAW-GDPO | |---|---|---| "
        "| area under the curve | {} [{}, {}], Holm {} | {} [{}, {}], Holm {} | "
        "| last five steps | {} [{}, {}], Holm {} | {} [{}, {}], Holm {} |",
        lambda: [
            str(lean_seeds()),
            *two(lean_mean("correctness", slice(1), *lean())),
            *two(*(lean_mean("correctness", slice(-5, None), method) for method in ("grpo", "gdpo"))),
            *lean_gaps("correctness", summary.AREA, FINAL),
        ],
    ),
    Figure(
        README,
        "A loss of up to {}, {} % of the range, was called negligible beforehand. SAW-GRPO's losses are smaller than "
        "that (test for equivalence: p {} for the area, {} for the last steps).",
        lambda: [
            *(f"{lean_study.MARGIN * 6:.2f}", f"{100 * lean_study.MARGIN:.0f}"),
            *(lean_same("correctness", measure)[0] for measure in (summary.AREA, FINAL)),
        ],
    ),
    Figure(
        README,
        "For its last steps the test is inconclusive (p {}). While SAW-GDPO learns format, correctness falls below its "
        "start, to {} (lowest mean of five steps)",
        lambda: [lean_same("correctness", FINAL)[1], *two(lean_lowest("saw_gdpo"))],
    ),
    Figure(
        README,
        "**Lean trainer, {} seeds** ([GRPO](study/lean/rewards_grpo.png), [GDPO](study/lean/rewards_gdpo.png)). With "
        "SAW, format changes by: "
        "| format | SAW-GRPO | SAW-GDPO | |---|---|---| "
        "| area under the curve | {} [{}, {}], Holm {} | {} [{}, {}], Holm {} | "
        "| last five steps | {} [{}, {}], Holm {} | {} [{}, {}], Holm {} | "
        "| learned at (median, not tested) | step {} instead of {} | step {} instead of {} |",
        lambda: [
            str(lean_seeds()),
            *lean_gaps("format", summary.AREA, FINAL),
            *(lean_learned(method) for method in ("saw_grpo", "grpo", "saw_gdpo", "gdpo")),
        ],
    ),
    # --- step times
    Figure(
        README,
        "the advantages take {} s of {} to {}. - Whole steps with SAW take {} % [{}, {}] and {} % [{}, {}] over GRPO",
        lambda: [
            *two(statistics.fmean(seconds("adv", method) for method in WEIGHING)),
            *(f"{end(seconds('step', method) for method in WEIGHING):.1f}" for end in (min, max)),
            *(
                f"{value:+.1f}" if place == 0 else f"{value:.1f}"
                for method in ("saw_grpo", "saw_gdpo")
                for place, value in enumerate(over_grpo(method))
            ),
        ],
    ),
    Figure(README, "Gradient-based weights take +{} % [{}, {}]", lambda: whole(*over_grpo("gradient_grpo"))),
    Figure(README, "too noisy to distinguish the paper's {} to {} % (N)", lambda: paper("time per step", 2)[:2]),
    Figure(
        README,
        "The paper's {} to {} % (N)",
        lambda: [f"{float(value):+.0f}" for value in paper("time per step", 2)[2:]],
    ),
    Figure(
        STEP,
        "(which has {} to {} % for SAW and {} to {} % for gradient-based weighting",
        lambda: paper("time per step", 2),
    ),
    Figure(
        STEP,
        "takes {} to {} s of {} to {} (medians)",
        lambda: [
            *(f"{end(seconds('adv', method) for method in WEIGHING):.3f}" for end in (min, max)),
            *(f"{end(seconds('step', method) for method in WEIGHING):.1f}" for end in (min, max)),
        ],
    ),
    Figure(
        STEP,
        "half of these methods' steps lie between {} and {} s",
        lambda: [
            f"{value:.1f}"
            for value in np.quantile([row["step"] for row in timed() if row["method"] in WEIGHING], [0.25, 0.75])
        ],
    ),
    Figure(STEP, "So SAW's {} to {} % could", lambda: paper("time per step", 2)[:2]),
    Figure(
        STEP,
        "adds {} % (GRPO) and {} % (GDPO, over GRPO's step). Most of it is the two backward passes, {} of {} s; the "
        "forward pass ({} s) replaces that of the old log-probabilities ({} s for all",
        lambda: [
            *whole(over_grpo("gradient_grpo")[0], over_grpo("gradient_gdpo")[0]),
            *two(
                seconds("gradients_backward", "gradient_grpo"),
                seconds("step", "gradient_grpo") - seconds("step", "grpo"),
                seconds("gradients_forward", "gradient_grpo"),
                seconds("old_log_prob", "grpo"),
            ),
        ],
    ),
    Figure(
        STEP,
        "backward passes end half-way, {} s: {} %.",
        lambda: [
            *two(seconds("gradients_backward", "gradient_grpo, upper half")),
            *whole(over_grpo("gradient_grpo, upper half")[0]),
        ],
    ),
    # --- benchmarks of which only the printed table is kept
    Figure(
        ADVANTAGES,
        "vectorised GRPO: {} against {} ms (K = 2) and {} against {} ms (K = 8) with kept",
        lambda: whole(*ours_and_verls("32768x1024", "kept")),
    ),
    Figure(
        ADVANTAGES,
        "memory, {} against {} and {} against {} ms with fresh memory.",
        lambda: whole(*ours_and_verls("32768x1024", "fresh")),
    ),
    Figure(
        ADVANTAGES,
        "ahead with fresh memory, {} against {} ms (K = 2) and {} against {} ms (K = 8), and",
        lambda: one(*ours_and_verls("2048x1024", "fresh")),
    ),
    Figure(
        ADVANTAGES,
        "level with kept memory, {} against {} and {} against {} ms.",
        lambda: two(*ours_and_verls("2048x1024", "kept")),
    ),
    Figure(REWARDS, "response take {}, {} and {} times as long", lambda: [f"{ratio:.1f}" for ratio in reward_times()]),
    Figure(JUDGE, "out of range) {} % of the samples", lambda: whole(100 * int(printed(JUDGE)[1][4]) / 10_000)),
    Figure(JUDGE, "in flight holds it at {}.", lambda: [printed(JUDGE)[0][6]]),
    # --- SmolLM2
    *(
        Figure(
            SMOL,
            f"| {label} | {{}} | {{}} | {{}} | {{}} | {{}} |",
            lambda objective=objective: smol_held_out(objective),
        )
        for objective, label in (("words", "both words"), ("form", "form"), ("length", "length"))
    ),
    Figure(
        SMOL,
        "Of {} comparisons with the base method, one is significant in its table: with SAW-GRPO, the area under "
        "length's curve is {} higher (p {}, Holm {}). With Holm's correction over all comparisons, none is (smallest "
        "{})",
        lambda: [
            str(len(smol_tests())),
            smol_tests()[0]["minus grpo"].split()[0],
            *(p_value(float(smol_tests()[0][name])) for name in ("p", "p, Holm")),
            p_value(len(smol_tests()) * float(smol_tests()[0]["p"])),
        ],
    ),
    # --- recipes
    Figure(
        "recipes/study/README.md",
        "steps of one seed took {} to {} minutes",
        lambda: whole(min(map(minutes, range(1, 6))), max(map(minutes, range(1, 6)))),
    ),
    Figure(
        "recipes/study/README.md",
        "format's weight hardly leaves one half ({} to {})",
        lambda: three(*format_weights("gradient_grpo", "gradient_gdpo")),
    ),
    Figure(
        "recipes/study/README.md",
        "lets them move ({} to {})",
        lambda: two(*format_weights("gradient_gdpo, lr=1e-5")),
    ),
    Figure(
        "recipes/study/README.md",
        "neither of {} means (Welch's t-test, smallest p {}), nor of the mean curves (permutation test, smallest p {})",
        lambda: [str(len(trainers("agreement"))), *two(*(min(trainers(what)) for what in ("agreement", "curves")))],
    ),
    Figure(
        "recipes/study/README.md",
        "the area under format's curve rises by {} (SAW-GRPO) and {} (SAW-GDPO) in the pipeline, by {} and {} in the "
        "lean trainer; that of correctness falls by {} and {}, and by {} and {}",
        lambda: three(
            *(
                abs(statistics.fmean(lean_study.differences(lean(folder), method, objective, summary.AREA)))
                for objective in ("format", "correctness")
                for folder in ("same_start", "lean")
                for method in lean_study.PAIRS
            )
        ),
    ),
]


def test_one_comparison_of_smollm2_is_significant():
    """What the text says without a number."""
    first, *others = smol_tests()
    assert (first["method"], first["objective"], first["measure"]) == ("saw_grpo", "length", summary.AREA)
    assert float(first["p, Holm"]) < 0.05
    assert min(float(row["p, Holm"]) for row in others) > 0.05
    assert len(smol_tests()) * float(first["p"]) > 0.05


def flat(file: str) -> str:
    return re.sub(r"\s+", " ", (ROOT / file).read_text())


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.text[:50])
def test_a_figure_is_what_the_data_gives(figure):
    """Kind: text that differs from its data because of a slip, rounding or a new measurement."""
    text = flat(figure.file)
    said = re.search(figure.pattern(), text)
    assert said, f"{figure.file} no longer has {figure.text!r}; change the entry in FIGURES together with the text"
    assert figure.right() in text, f"{figure.file} has {said[0]!r}; the data gives {figure.right()!r}"


#: Numbers that are not figures: settings of a study, names, thresholds.
SETTINGS = {
    README: [
        *("300 seeds per method", "[real pipeline], 5 seeds", "(Tables 1, 2)", "reaches 0.9"),
        *(
            "weights 1:3",
            "8 methods x 5 seeds",
            "[pipeline], 5 seeds:",
            "95 % bootstrap",
            "with seed 1",
            "in the pipeline, 2 seeds,",
            "of 135 million parameters, in the pipeline, 3 seeds",
            "four methods x 3 seeds",
            "good objective with 8 choices",
            "(1 in 50 at first)",
        ),
        *("CV is 0, and", "nothing to learn (1 in 10)", "(offset of 5)", "within 2 % of the steps", "2 CPU cores"),
        *("with 8 samples per step", "with 32,", "with 128", "with 8 (", "16 steps", "1 kB to 1 MB", "30 % faults"),
        *("to norm 1 before", "norms are above 1", "objective has weight 0,"),
    ],
    STEP: [
        *("4 layers of 96; 16 prompts x 4 responses", "n = 21 steps", "95 % bootstrap"),
        "48 tokens per reply",
    ],
    JUDGE: [
        *("10,000 questions", "64 requests in flight", "30 % faults", "429 with", "500, reset"),
        "64 in flight, 1.0 s per answer",
    ],
    REWARDS: ["100 kB to 1 MB", "median within 0.5 s"],
    ADVANTAGES: ["median of 25", "(32768, 1024)", "(2048, 1024)", "in about 110 operations"],
}
#: The passage about KL has its own test, which does not depend on the wording.
KL = re.compile(r"- \*\*\[The KL confound\].*?(?=\n\n|\n- \*\*)", re.DOTALL)


def uncovered(file: str, text: str) -> Iterator[str]:
    """Numbers in the prose that are neither in an entry nor a setting, each with its surroundings."""
    text = "\n".join(line for line in KL.sub("", text).splitlines() if "; commit " not in line)
    if file != README:  # a benchmark's table is its output
        text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    text = re.sub(r"\s+", " ", re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "``", text)))
    gone = [re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "``", f.right())) for f in FIGURES if f.file == file]
    for piece in sorted([*gone, *SETTINGS[file]], key=len, reverse=True):
        text = text.replace(piece, "§")
    for found in re.finditer(r"(?<![\w.])[-+±]?\d[\d.,]*", text):
        yield text[max(found.start() - 40, 0) : found.end() + 20]


@pytest.mark.parametrize("file", SETTINGS)
def test_every_figure_of_the_text_has_its_data(file):
    """Kind: a figure without data. Give it an entry in FIGURES, or say in the text that no data is kept."""
    left = list(uncovered(file, (ROOT / file).read_text()))
    assert not left, "\n".join(left)


def test_a_figure_that_nothing_derives_is_found():
    text = (ROOT / README).read_text()
    assert len(list(uncovered(README, f"{text}\nThis is 12.5 % better, as 0.041 was."))) == 2
    assert len(list(uncovered(README, text.replace("79 instead", "78 instead")))) > 2


def test_a_text_that_differs_is_shown_with_the_new_figure():
    figure = Figure(README, "the late objective takes {} of {} steps.", lambda: ["3", "4.5"])
    assert re.search(figure.pattern(), "the late objective takes 3 of 4.25 steps.")
    assert figure.right() == "the late objective takes 3 of 4.5 steps."


def test_the_figures_of_the_kl_passage_are_in_its_data():
    """Kind: as above, for a passage whose wording may change."""
    passage = KL.search((ROOT / README).read_text())
    assert passage
    data = [abs(float(v)) for row in table("study/tabular/kl") for v in row.values() if re.fullmatch(r"-?[\d.]+", v)]
    for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", re.sub(r"\]\([^)]*\)|`[^`]*`", "", passage[0])):
        digits = len(number.partition(".")[2])
        if number == "0.9":
            continue  # the probability at which an objective counts as learned
        assert any(f"{value:.{digits}f}" == number for value in data), f"the passage about KL has {number}, kl.csv not"


ONE_ROW_EACH = sorted({path.stem for path in (RESULTS / "study" / "tabular").glob("*.csv")} - {"methods"})


@pytest.mark.parametrize("name", ONE_ROW_EACH)
def test_a_table_of_the_tabular_study_is_that_of_its_csv(name):
    """Kind: a table from another run than the CSV beside it. Compares each row, to the digits shown."""
    rows = printed(f"results/study/tabular/{name}.md")
    data = table(f"study/tabular/{name}")
    assert len(rows) == len(data)
    for shown, kept in zip(rows, data, strict=True):
        numbers = [float(value) * scale for value in kept.values() for scale in (1, 100) if _is_number(value)]
        for entry in shown:
            if any(entry in value for value in kept.values()) or entry.startswith("a "):
                continue  # a label
            for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-\d+)?", entry):
                step = 10.0 ** -len(number.partition(".")[2].partition("e")[0])
                near = any(abs(value - float(number)) <= 0.5 * step + 1e-4 for value in numbers)
                assert near, f"{name}.md has {number} in {shown[:3]}, {name}.csv not"


def test_a_cell_of_the_comparison_of_methods_is_that_of_its_csv():
    """Kind: as above; there, a row of the CSV is a cell."""
    kept = {(row["method"], row["situation"]): row for row in table("study/tabular/methods")}
    for name, *cells in printed("results/study/tabular/methods.md"):
        for situation, cell in zip(tabular_methods.SITUATIONS, cells, strict=True):
            row = kept.pop((name, situation), None)
            shown = [float(number) for number in re.findall(r"\d+\.\d+", cell)]
            columns = [f"{what}{end}" for what in ("steps", "area") for end in ("", "_low", "_high")]
            expected = [] if row is None else [float(row[column]) for column in columns]
            assert shown[:3] == pytest.approx(expected[:3], abs=0.0502), (name, situation)
            assert shown[3:] == pytest.approx(expected[3:], abs=0.0006), (name, situation)
    assert not kept


def _is_number(value: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(?:\.\d+)?", value))


def test_the_quickstart_s_table_is_that_of_its_logs():
    """Kind: as above."""
    folder = RESULTS / "quickstart"
    made = summary_table({name: read_history(folder / f"{name}.jsonl") for name in ("grpo", "saw_gdpo")})
    assert made in (folder / "summary.md").read_text()


def test_the_released_versions_page_is_what_its_runs_printed():
    """Kind: as above; the commands, the counts of tests, and the table of the training."""
    folder = RESULTS / "released"
    page = (folder / "README.md").read_text()
    rows = re.findall(r"\| `(SAW_SET=released bash scripts/test.sh [^`]*)` \| ([^|:]*)", page)
    printed = (folder / "tests.txt").read_text().split("$ ")[1:]
    assert len(rows) == len(printed) == 2
    for (command, result), output in zip(rows, printed, strict=True):
        assert output.startswith(f"{command}\n")
        assert f" {result.strip()}" in output
    summary = (folder / "summary.md").read_text()
    assert summary_table({"saw_gdpo": read_history(folder / "saw_gdpo.jsonl")}) in summary
    (commit,) = re.findall(r"commit (\w+);", summary)
    assert f"commit {commit}" in page


@pytest.mark.parametrize("paper_table", [table1.TABLE, table2.TABLE], ids=lambda paper_table: paper_table.name)
def test_the_text_of_a_table_is_its_generator_s(paper_table):
    """Kind: a note or a heading that is changed in the generator and not in the results, or by hand in the results."""
    page = (RESULTS / paper_table.name / f"{paper_table.name}.md").read_text()
    text, _, _ = paper_table.make(RESULTS / "no such folder")
    title, rows, *notes = text.strip().split("\n\n")
    for part in (title, rows.splitlines()[0], *notes):
        assert part in page


def test_the_paper_s_numbers_of_the_tables_are_those_of_paper_yaml():
    """Kind: as above, for the paper's numbers; the page names their source."""
    reported = yaml.safe_load((RESULTS / "paper.yaml").read_text())
    for name, columns in {"table1": ("overall",), "table2": ("quality", "conciseness", "total")}.items():
        assert reported[name]["source"] in (RESULTS / name / f"{name}.md").read_text()
        for row in table(f"{name}/{name}"):
            for column in columns:
                source = reported[name][column]
                value = (source[row["model"]] if name == "table1" else source).get(row["method"])
                assert row[f"paper_{column}"] == ("" if value is None else f"{value:.4f}")


def test_the_page_about_the_gpu_is_what_ran_there():
    """Kind: as above; the counts of tests, the trainings, and the table of the benchmark."""
    folder = RESULTS / "gpu"
    page, tests = ((folder / name).read_text() for name in ("README.md", "tests.txt"))
    counts = re.findall(r"tests/gpu/(\w+\.py)[^\n]*\| ((?:\d+ (?:passed|failed)(?:, )?)+)", page)
    assert len(counts) == 3
    for file, counted in counts:
        (output,) = [part for part in tests.split("$ ") if file in part.partition("\n")[0]]
        for count in re.findall(r"\d+ \w+", counted):
            assert count in output, (file, count)
    for part in (*gpu_trainings(), *gpu_advantages()):
        assert part in page, part


def gpu_trainings() -> Iterator[str]:
    """What the page says of the trainings, from their metrics."""
    toy, toolrl = (pd.read_csv(RESULTS / "gpu" / f"{name}_steps.csv") for name in ("toy", "toolrl"))
    mean, largest = (toy[f"training/rollout_probs_diff_{what}"].max() for what in ("mean", "max"))
    first, *later = toy["timing_s/step"]
    yield f"{len(toy)} of 14 steps"
    yield f"differ by {mean:.4f} on average, and {largest:.3f} at most"
    yield f"took {first:.0f} s, because vLLM compiles, the others {min(later):.1f} to {max(later):.1f} s"
    groups = smollm2_study.read(RESULTS / "gpu" / "smollm2")
    runs = [groups[method][0] for method in ("grpo", "gdpo", "saw_gdpo")]
    for name, label in (("words", "both words"), ("form", "form"), ("length", "length")):
        before, *_ = {run.validation[0][f"saw-val/{name}/mean"] for run in runs}
        after = [run.validation[12][f"saw-val/{name}/mean"] for run in runs]
        yield f"| {label} | {' | '.join(f'{value:.3f}' for value in (before, *after))} |"
    medians = [statistics.median(run.history.columns["timing_s/step"]) for run in runs]
    yield f"took {min(medians):.1f} to {max(medians):.1f} s\n  (median)"
    assert set(toolrl["saw/format/mean"]) == {0}
    assert set(toolrl["saw/correctness/zero_spread"]) == {1}
    for what, digits in (
        ("steps took", "timing_s/step"),
        ("the update", "timing_s/update_actor"),
        ("\n  generation", "timing_s/gen"),
    ):
        yield "{} {:.0f} and {:.0f} s".format(what, *toolrl[digits])
    mean, largest = (toolrl[f"training/rollout_probs_diff_{what}"] for what in ("mean", "max"))
    yield "{:.4f} and {:.4f} on average, and {:.2f} at most".format(*mean, largest.max())
    memory = pd.read_csv(RESULTS / "gpu" / "memory.csv")
    yield "estimated {:.1f} and {:.1f} GiB".format(*memory["estimated_gib"])
    yield "peaks of {:.2f} and {:.2f} GiB".format(*memory["measured_gib"])
    assert memory["measured_gib"][0] == pytest.approx(toolrl["actor/perf/max_memory_allocated_gb"].max(), abs=5e-3)


def gpu_advantages() -> Iterator[str]:
    """The page's table of the benchmark, and what it says of it and of the earlier one."""
    rows, earlier = (
        [line.replace("| kept |", "|") for line in (RESULTS / "gpu" / f"{name}.txt").read_text().splitlines()[5:]]
        for name in ("advantage", "advantage_earlier")
    )
    yield "\n".join(rows)

    def ms(rows: list[str], k: int, case: str) -> str:
        (row,) = [row for row in rows if f"| {k} | {case} |" in row]
        return row.split(" | ")[3]

    cases = ("saw saw_gdpo", "verl grpo_vectorized", "verl grpo")
    yield "takes {} ms, verl's vectorised GRPO {} ms, verl's default GRPO {} ms".format(
        *(ms(rows, 2, c) for c in cases)
    )
    ours, vectorised = ([ms(earlier, k, case) for k in (2, 8)] for case in cases[:2])
    yield "took {} ms (K = 2)\nand {} ms (K = 8), vectorised GRPO {} and {} ms".format(*ours, *vectorised)
