"""The language model's study: from runs to its CSV, and from the CSV to its tables, the same each time."""

import math
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from recipes.study import language_model as lm
from saw.report.history import History, LoggedRun
from saw.report.summary import AREA, area_under_curve
from saw.verl.names import SEEDED, SINGLE_TURN
from tests.conftest import ROOT

STUDY = ROOT / "results" / "study" / "lm"
SAME_START = STUDY.with_name("same_start")


def make_run(tmp_path, method: str, seed: int, late: int) -> LoggedRun:
    """Format is learned at once, correctness from step ``late`` on; CV falls as the mean rises."""
    steps = tuple(range(1, 41))
    columns = dict.fromkeys(lm.KEPT, (1.0,) * 40)
    for name, (low, high) in lm.OBJECTIVES.items():
        start = 1 if name == "format" else late
        share = [min(max(step - start, 0) / 5, 1.0) * 0.9 + 0.01 * seed for step in steps]
        columns[f"saw/{name}/mean"] = tuple(low + (high - low) * value for value in share)
        columns[f"saw/{name}/cv"] = tuple(1.5 - value for value in share)
        columns[f"saw/{name}/zero_spread"] = tuple(share)
    record = {
        "config": {"saw": {"method": method}, "data": {"seed": seed}},
        "ranges": {name: list(bounds) for name, bounds in lm.OBJECTIVES.items()},
        "provenance": {"commit": "abc"},
    }
    return LoggedRun(tmp_path / f"{method}_seed{seed}", History(steps, tuple(lm.OBJECTIVES), columns), {}, record)


@pytest.fixture
def runs(tmp_path):
    late = {"grpo": 20, "saw_grpo": 12}
    return [make_run(tmp_path, method, seed, late[method]) for method in late for seed in (1, 2, 3)]


def test_the_csv_gives_the_runs_back(runs, tmp_path):
    lm.write_steps(runs, tmp_path / "steps.csv")
    groups = lm.read_steps(tmp_path / "steps.csv")
    assert {name: [run.seed for run in group] for name, group in groups.items()} == {
        "grpo": [1, 2, 3],
        "saw_grpo": [1, 2, 3],
    }
    assert groups["grpo"][0].history.of("format", "mean") == pytest.approx(runs[0].history.of("format", "mean"))


def test_a_longer_run_is_cut_to_the_shortest(runs, tmp_path):
    history = runs[1].history
    columns = {name: values[:30] for name, values in history.columns.items()}
    runs[1] = replace(runs[1], history=replace(history, steps=history.steps[:30], columns=columns))
    assert lm.write_steps(runs, tmp_path / "steps.csv") == 30
    groups = lm.read_steps(tmp_path / "steps.csv")
    assert {run.history.steps for group in groups.values() for run in group} == {tuple(range(1, 31))}


def test_the_gradient_rows_differ_by_their_rate(tmp_path):
    rates = {"gradient_grpo": "1e-6", "gradient_grpo, lr=1e-5": "1e-5"}
    names = {label: f"gradient_grpo_saw.options.gradient.lr_{rate}_seed12" for label, rate in rates.items()}
    made = make_run(tmp_path, "gradient_grpo", 12, late=3)
    lm.write_steps([replace(made, folder=tmp_path / name) for name in names.values()], tmp_path / "steps.csv")
    groups = lm.read_steps(tmp_path / "steps.csv")
    assert {label: group[0].folder.name for label, group in groups.items()} == names
    assert {group[0].method for group in groups.values()} == {"gradient_grpo"}
    asked = lm.sweep.plan(lm.sweep.parse(["--method", lm.METHODS["gradient_grpo, lr=1e-5"], "--seeds", "12"]))
    assert list(asked) == [names["gradient_grpo, lr=1e-5"]]


def test_trainings_that_the_csv_holds_are_kept(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("SAW_RUNS", str(tmp_path / "runs"))
    lm.write_steps(runs, tmp_path / "steps.csv")
    planned = {}

    def run_all(shared, chains, last, parallel):
        assert parallel == 2
        planned.update(chains)

    monkeypatch.setattr(lm, "run_all", run_all)
    monkeypatch.setattr(lm.figures, "draw_all", lambda groups, out: [])
    lm.main(["--add", "--out", str(tmp_path), "--seeds", "3,4", "--method", "grpo", "--method", "saw_gdpo"])
    assert set(planned) == {"saw_gdpo_seed3", "grpo_seed4", "saw_gdpo_seed4"}
    assert "6 trainings" in (tmp_path / "README.md").read_text()
    assert {name: len(group) for name, group in lm.read_steps(tmp_path / "steps.csv").items()} == {
        "grpo": 3,
        "saw_grpo": 3,
    }
    with pytest.raises(SystemExit, match="has no finished training"):
        lm.main(["--report-only", "--out", str(tmp_path / "new")])


def test_when_an_objective_is_learned(runs, tmp_path):
    lm.write_steps(runs, tmp_path / "steps.csv")
    rows = {row[0]: row[1:] for row in lm.learned_at(lm.read_steps(tmp_path / "steps.csv")).rows}
    assert rows["grpo"][0] == rows["saw_grpo"][0]
    step = {name: int(cells[1].split()[0]) for name, cells in rows.items()}
    assert step["grpo"] - step["saw_grpo"] == 8  # 20 less 12


@pytest.mark.slow  # draws the figures
def test_the_report_has_its_tests_and_signal(runs, tmp_path):
    lm.write_steps(runs, tmp_path / "steps.csv")
    text = lm.report(tmp_path)
    assert "## Against grpo" in text
    sooner = re.search(rf"\| saw_grpo \| correctness \| {AREA} \| ([\d.]+) \[", text)  # in SAW's run, 8 steps sooner
    assert float(sooner[1]) > 0.2
    assert "| saw_grpo | correctness | last 5 steps |" in text
    assert "## CV as a signal" in text
    assert (tmp_path / "rewards_grpo_based.png").exists()


def test_a_run_that_learns_nothing_is_never_learned(tmp_path):
    run = make_run(tmp_path, "grpo", 1, late=100)
    assert lm._learned_at(run.history, "correctness") == math.inf


@pytest.mark.slow
@pytest.mark.skipif(not (STUDY / "steps.csv").exists(), reason="no language model has been studied yet")
@pytest.mark.parametrize("folder", [STUDY, SAME_START], ids=lambda folder: folder.name)
def test_the_committed_report_is_what_its_csv_gives(folder, tmp_path):
    shutil.copy(folder / "steps.csv", tmp_path)
    assert (folder / "README.md").read_text().startswith(lm.report(tmp_path))


def test_what_a_second_training_of_a_seed_is_said_to_lose_is_what_it_lost():
    text = " ".join((ROOT / "results" / "README.md").read_text().split())
    said = re.search(r"with seed 1, SAW-GDPO lost (\d+\.\d+) instead of (\d+\.\d+)", text)
    for name, number in zip(("again.csv", "steps.csv"), said.groups(), strict=True):
        groups = lm.read_steps(STUDY / name)
        saw, plain = (
            next(area_under_curve(run, "correctness") for run in groups[method] if run.seed == 1)
            for method in ("saw_gdpo", "gdpo")
        )
        assert plain - saw == pytest.approx(float(number), abs=5e-4)


def test_what_a_seed_of_each_request_is_said_to_fix_is_fixed():
    table = pd.read_csv(STUDY / "seeded.csv").set_index(["agent_loop", "training", "step"])

    def pair(agent_loop: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        return table.loc[agent_loop, 1], table.loc[agent_loop, 2]

    text = " ".join((ROOT / "docs" / "settings.md").read_text().split())
    first, second = pair(SEEDED)
    assert first.drop(columns="grad_norm").equals(second.drop(columns="grad_norm"))
    within = float(re.search(r"gradient norms that agreed to (\S+?)\.", text).group(1))
    assert within / 2 < abs(first["grad_norm"] / second["grad_norm"] - 1).max() < within
    first, second = pair(SINGLE_TURN)
    format_by, norm_by = map(float, re.search(r"by up to (0\.\d+), .* factor of up to (\d\.\d) ", text).groups())
    assert abs(first["format"] - second["format"]).max() == pytest.approx(format_by, abs=5e-3)
    ratio = first["grad_norm"] / second["grad_norm"]
    assert max(ratio.max(), 1 / ratio.min()) == pytest.approx(norm_by, abs=0.05)


# ---------------------------------------------------------------- where it was trained


def recorded(run: LoggedRun, machine: str, versions: str) -> LoggedRun:
    """The run with a record of its machine."""
    made = {**run.info["provenance"], "machine": machine, "versions": versions}
    return replace(run, info={**run.info, "provenance": made})


def test_the_page_names_the_machines_of_the_trainings(runs, tmp_path, monkeypatch):
    """Kind: the page named the machine on which it was written."""
    monkeypatch.setenv("SAW_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(lm, "run_all", lambda *_: None)
    monkeypatch.setattr(lm, "report", lambda out: "the tables")
    there = [recorded(run, "1 x a GPU", "torch 2.11.0") for run in runs[:5]]
    lm.write_steps([*there, recorded(runs[5], "a CPU", "torch 2.13.0+cpu")], tmp_path / "steps.csv")
    lm.main(["--add", "--out", str(tmp_path)])  # whose records are in the CSVs alone
    last = (tmp_path / "README.md").read_text().splitlines()[-1]
    assert last.endswith("commits in steps.csv; 1 x a GPU; torch 2.11.0; a CPU; torch 2.13.0+cpu.")
    lm.main(["--add", "--out", str(tmp_path)])  # again, from what the first page left
    assert (tmp_path / "README.md").read_text().splitlines()[-1] == last


def test_what_was_not_recorded_is_said_so(runs, tmp_path):
    lm.write_steps(runs, tmp_path / "steps.csv")
    (tmp_path / lm.TRAININGS).unlink()  # as in a folder of an older version
    (first, *_), (second, *_) = lm.read_steps(tmp_path / "steps.csv").values()
    known = recorded(first, "a CPU", "torch 2.13.0+cpu")
    assert lm.trained_on([known, second]) == (
        "a CPU; torch 2.13.0+cpu; machine and versions of 1 trainings were not recorded"
    )


def test_a_repetition_at_another_commit_is_another_training(runs, tmp_path):
    lm.write_steps([recorded(run, "a CPU", "torch 2.13.0+cpu") for run in runs], tmp_path / "steps.csv")
    text = (tmp_path / "steps.csv").read_text()
    (tmp_path / "again.csv").write_text(text.replace(",abc,", ",0123456,"))
    (again, *_) = lm.read_steps(tmp_path / "again.csv")["grpo"]
    assert again.info["provenance"] == {"commit": "0123456"}


@pytest.mark.parametrize("folder", [STUDY, SAME_START], ids=lambda folder: folder.name)
def test_the_committed_page_says_what_its_csvs_record(folder):
    groups = lm.read_steps(folder / "steps.csv").values()
    runs = [run for group in groups for run in group]
    assert (folder / "README.md").read_text().splitlines()[-1] == lm.origin(runs, runs[0].history.steps[-1])
