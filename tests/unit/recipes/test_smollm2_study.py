"""SmolLM2's study: the questions and their rewards, and from trainings to CSVs to tables, the same each time."""

import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmarks import phases
from recipes.common import smollm2
from recipes.study import short_answers
from recipes.study import smollm2_study as study
from saw.report.history import History, LoggedRun
from saw.verl.config_checks import check_config
from tests.configs import compose
from tests.conftest import ROOT

RESULTS = ROOT / "results" / "smollm2" / "study"


@pytest.mark.parametrize(
    ("answer", "words", "form", "length"),
    [
        ("The train runs along a wide river.", 1, 1, 1 - 1 / 8),
        ("The Trains run slowly along a wide River.", 1, 1, 1.0),
        ("The train runs slowly along a wide lake.", 0, 1, 1.0),
        ("The training driver runs along a wide river.", 0, 1, 1.0),
        ("the train runs slowly along a wide river.", 1, 0, 1.0),
        ("The train runs slowly along a wide river", 1, 0, 1.0),
        ("The train runs. It runs along a river.", 1, 0, 1.0),
        ("The train\nruns slowly along a wide river.", 1, 0, 1.0),
        ("River train. " * 40, 1, 0, 0.0),
        ("", 0, 0, 0.0),
    ],
)
def test_an_answer_is_scored(answer, words, form, length):
    """Kind: a reward that a part of the rule already gives, or a value outside of its range."""
    found = short_answers.score("short_answers", answer, "8 river train")
    assert found == {"words": words, "form": form, "length": length, "score": pytest.approx(words + form + length)}


def test_held_out_words_are_not_trained_on(tmp_path, monkeypatch):
    assert not set(short_answers.TRAIN_WORDS) & set(short_answers.TEST_WORDS)
    monkeypatch.setattr("sys.argv", ["short_answers", "--out", str(tmp_path)])
    short_answers.main()
    rows = {split: pq.read_table(tmp_path / f"{split}.parquet").to_pylist() for split in ("train", "test")}
    assert len(rows["test"]) == short_answers.TEST_ROWS
    for split, words in (("train", short_answers.TRAIN_WORDS), ("test", short_answers.TEST_WORDS)):
        asked = [row["reward_model"]["ground_truth"].split()[1:] for row in rows[split]]
        assert {word for pair in asked for word in pair} == set(words)
        for row, (first, second) in zip(rows[split], asked, strict=True):
            assert first != second
            assert f"{first} and {second}." in row["prompt"][1]["content"]


def test_the_trainings_are_those_of_the_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("SAW_RUNS", str(tmp_path))
    planned = {}

    def run_all(shared, chains, last, parallel):
        planned.update(shared=shared, chains=chains, parallel=parallel)

    monkeypatch.setattr(study, "run_all", run_all)
    asked = ["--seeds", "2,3", "--method", "grpo", "--method", "saw_gdpo", "--steps", "5", "--train-only"]
    study.main([*asked, "--parallel", "2", "actor_rollout_ref.actor.optim.lr=3e-5"])
    assert planned["parallel"] == 2
    assert [stage.name for stage in planned["shared"]] == ["smollm2", "data"]
    assert set(planned["chains"]) == {f"{name}_seed{seed}" for name in ("grpo", "saw_gdpo") for seed in (2, 3)}
    (stage,) = planned["chains"]["saw_gdpo_seed3"]
    config = compose(*stage.command[2:])
    assert check_config(config).method == "saw_gdpo"
    assert config.data.seed == 3
    assert config.actor_rollout_ref.actor.optim.lr == 3e-5
    assert config.trainer.total_training_steps == config.trainer.test_freq == 5
    assert config.actor_rollout_ref.model.path == str(smollm2.default_folder())
    assert list(config.saw.objectives) == list(short_answers.RANGES)


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_steps_that_are_no_number_of_steps_are_refused(steps, capsys):
    with pytest.raises(SystemExit):
        study.main(["--steps", steps, "--train-only"])
    assert f"--steps is {steps}; expected at least 1" in capsys.readouterr().err


def test_the_page_names_the_machine_of_the_trainings(tmp_path, monkeypatch):
    """Kind: a page made on another machine than its trainings named that machine."""
    monkeypatch.setenv("SAW_RUNS", str(tmp_path / "runs"))
    for name in ("grpo_seed1", "saw_grpo_seed1"):
        folder = tmp_path / "runs" / "smollm2" / name
        folder.mkdir(parents=True)
        (folder / "train.done.json").write_text("{}")

    def read_run(folder):
        run = make_run(tmp_path, folder.name.removesuffix("_seed1"), 1, 0.02)
        run.info["provenance"] |= {"machine": "1 x a GPU", "versions": "torch 2.11.0"}
        return run

    monkeypatch.setattr(study, "read_run", read_run)
    monkeypatch.setattr(study.figures, "draw_all", lambda groups, out: [])
    study.main(["--report-only", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "README.md").read_text().splitlines()[-1] == (
        "`bash scripts/study.sh smollm2 --method grpo --method saw_grpo`; 2 trainings, 10 steps of each, commits in "
        "steps.csv; 1 x a GPU; torch 2.11.0."
    )


def make_run(tmp_path, method: str, seed: int, step: float) -> LoggedRun:
    """Each objective rises by ``step`` with each of ten steps."""
    steps = tuple(range(1, 11))
    columns = {name: (1.0,) * 10 for name in study.KEPT if "old_log_prob" not in name}
    for name in short_answers.RANGES:
        columns[f"saw/{name}/mean"] = tuple(0.1 * seed + step * number for number in steps)
    validation = {
        number: {f"saw-val/{name}/mean": 0.1 * seed + step * number for name in short_answers.RANGES}
        for number in (0, 10)
    }
    info = {
        "config": {"saw": {"method": method}, "data": {"seed": seed}},
        "ranges": {name: list(bounds) for name, bounds in short_answers.RANGES.items()},
        "provenance": {"commit": "0123456"},
    }
    history = History(steps, tuple(short_answers.RANGES), columns)
    return LoggedRun(tmp_path / f"{method}_seed{seed}", history, validation, info)


@pytest.mark.slow  # draws the figures
def test_the_report_is_made_from_the_csvs_alone(tmp_path):
    runs = [
        make_run(tmp_path, name, seed, step) for name, step in (("grpo", 0.02), ("saw_grpo", 0.04)) for seed in (1, 2)
    ]
    study.write(runs, tmp_path / "out")
    groups = study.read(tmp_path / "out")
    assert {name: [run.seed for run in own] for name, own in groups.items()} == {"grpo": [1, 2], "saw_grpo": [1, 2]}
    assert groups["saw_grpo"][1].validation == {
        step: {key: pytest.approx(value) for key, value in of.items()} for step, of in runs[3].validation.items()
    }
    text = study.report(tmp_path / "out")
    name = next(iter(short_answers.RANGES))
    assert f"| saw_grpo | {name} | 0.150 [0.100, 0.200] (n = 2) | 0.550 [" in text
    assert f"| saw_grpo | {name} | last 5 steps | 0.160 [" in text  # 0.02 x 8
    assert "## Against gdpo" not in text
    assert (tmp_path / "out" / "rewards_grpo_based.png").exists()


@pytest.mark.slow  # draws the figures
def test_one_seed_has_no_interval_and_no_p(tmp_path):
    study.write([make_run(tmp_path, name, 1, 0.02) for name in ("gdpo", "saw_gdpo")], tmp_path / "out")
    text = study.report(tmp_path / "out")
    assert "| saw_gdpo | " in text
    assert "(n = 1)" in text
    assert "[0." not in text


@pytest.mark.slow
@pytest.mark.skipif(not (RESULTS / "steps.csv").exists(), reason="nothing has been trained yet")
def test_the_committed_report_is_what_its_csvs_give(tmp_path):
    for name in ("steps.csv", "held_out.csv"):
        shutil.copy(RESULTS / name, tmp_path)
    assert study.report(tmp_path) in (RESULTS / "README.md").read_text()


MEASURED = ROOT / "results" / "smollm2"


def test_the_page_of_what_was_measured_is_that_of_its_csvs():
    """Kind: text that differs from its data because of a slip or a new measurement."""
    text = " ".join((MEASURED / "README.md").read_text().split())
    assert " ".join(phases.report(MEASURED / "phases.csv").split()) in text
    rows = {name: pd.read_csv(MEASURED / f"{name}.csv", dtype=str) for name in ("settings", "tasks", "steps")}
    for row in rows["settings"].itertuples(index=False):
        assert f"| {' | '.join(row)} |" in text
    for row in rows["tasks"].itertuples(index=False):
        assert f"| {row.task} | {row.reward} | {row.mean} | {row.groups_with_spread} of {row.groups} |" in text
    steps = rows["steps"].astype({name: float for name in rows["steps"].columns if name != "setting"})
    assert f"a step took {steps.seconds.min():.0f} to {steps.seconds.max():.0f} s" in text
    padded, packed = steps.iloc[1], steps.iloc[2]
    for step, words in ((padded, " tokens on average in the first"), (packed, " in the second")):
        assert f"{step.prompt_tokens:.1f} and {step.answer_tokens:.1f}{words}" in text
    spent = phases.phases(MEASURED / "phases.csv").query("phase == 'update'")["seconds"]
    tokens = [0.064 * (step.prompt_tokens + step.answer_tokens) for step in (padded, packed)]
    each = [f"{seconds / of:.1f}" for seconds, of in zip(spent, tokens, strict=True)]
    assert f"The update took {' and '.join(each)} s per 1,000 tokens" in text
    assert f"rewards were {packed.reward_1:.3f}, {packed.reward_2:.3f} and {packed.reward_3:.3f}" in text
    assert f"{packed.cut:.0f} of the answers were cut off" in text
    assert packed.clip_fraction == 0
    assert f"between the two was {packed.ppo_kl:.0e}" in text


def test_a_phase_lasts_until_the_next_and_settings_are_apart(tmp_path):
    path = tmp_path / "phases.csv"
    path.write_text(
        "setting,time,phase,trainer,engine\n"
        "a,1,generation,10,5\na,2,update,11,9\na,3,generation,31,9\na,4,update,31,15\na,5,generation,41,15\n"
        "b,1,generation,0,0\nb,2,update,1,1\n"
    )
    assert list(phases.phases(path)["seconds"]) == [5, 20, 6, 10, 2]
    text = phases.report(path)
    assert "| a | 5.5 | 0.0 | 15.0 | 0.0 | 0.0 | 20.5 |" in text
    assert "| b | 2.0 | 0.0 | 0.0 | 0.0 | 0.0 | 2.0 |" in text


def test_what_the_pilot_is_said_to_have_learned_is_in_its_data():
    table = pd.read_csv(ROOT / "results" / "smollm2" / "pilot.csv").set_index("step")
    text = " ".join((ROOT / "results" / "smollm2" / "README.md").read_text().split())
    for reward, name in (("both words", "words"), ("form", "form"), ("length", "length")):
        first, last = (table[f"held_out_{name}"][step] for step in (0, 10))
        assert f"| {reward} | {first:.3f} | {last:.3f} |" in text
    seconds = table["step_s"].dropna()
    assert f"A step took {seconds.min():.0f} to {seconds.max():.0f} s, median {seconds.median():.0f} s" in text
    assert 0.2 < (table["gen_s"] / table["step_s"]).median() < 0.3  # a quarter
    lengths = table["response_length"]
    assert f"from {lengths[1]:.0f} to {lengths[10]:.0f} tokens" in text
    assert (table.loc[6:, ["words", "form"]] > 0.95).all(axis=None)  # two of the three are learned
