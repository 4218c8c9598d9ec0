"""Table 2: its numbers, its plan, and what is checked before it runs."""

import json
import math

import pytest

from recipes.common import reproduce as common
from recipes.tldr import reproduce
from recipes.tldr.evaluate import agreement, describe, judge_options, texts
from recipes.tldr.evaluate import main as evaluate_main
from recipes.tldr.table import TABLE
from saw.rewards.judge import Verdict
from saw.rewards.judge.options import JudgeError
from saw.verl.config_checks import check_config
from tests.configs import compose

NAMES = ("quality", "conciseness")
PAPERS_JUDGE = "gemini-3-flash-preview"


def verdict(quality, conciseness=5.0, **more) -> Verdict:
    return Verdict({"quality": quality, "conciseness": conciseness}, **more)


MISSING = verdict(math.nan, math.nan, fault="no answer")


def test_missing_verdicts_are_in_no_mean():
    described = describe([verdict(8.0, 4.0, dollars=0.5, requests=1), verdict(6.0, 6.0, requests=2), MISSING], NAMES)
    assert (described["quality"], described["conciseness"], described["total"]) == (7.0, 5.0, 12.0)
    assert (described["missing"], described["dollars"], described["requests"]) == (1, 0.5, 3)
    assert math.isnan(describe([MISSING], NAMES)["total"])


def test_costs_that_are_not_known_are_counted_and_in_no_sum():
    """Kind: verdicts without tokens, without dollars, without one of the scores."""
    verdicts = [
        verdict(8.0, dollars=0.5),
        verdict(6.0, uncounted=1, dollars=0.25),
        verdict(6.0, dollars=math.nan),
        Verdict({"quality": 1.0}, dollars=1.0),
        verdict(math.nan, dollars=1.0),
    ]
    described = describe(verdicts, NAMES)
    assert (described["quality"], described["missing"]) == (pytest.approx(20 / 3), 2)
    assert (described["dollars"], described["without_cost"]) == (2.75, 2)
    agreed = agreement(verdicts, verdicts, NAMES)
    assert (agreed["quality"]["n"], agreed["conciseness"]["n"]) == (4, 4)


def test_a_prompt_of_ones_own_is_checked_before_anything_is_written(tmp_path):
    """Kind: templates with a field that the evaluation does not fill in."""
    path = tmp_path / "own.txt"
    path.write_text("$model_sumary")
    override = f"reward.custom_reward_function.reward_kwargs.judge.prompt={path}"
    with pytest.raises(JudgeError, match=r"judge.prompt: .*own.txt has the field \$model_sumary"):
        judge_options("openai", [override], tmp_path / "faults.jsonl")


def test_agreement_by_hand():
    first = [verdict(q) for q in (1.0, 2.0, 3.0, 4.0)] + [MISSING, verdict(9.0)]
    second = [verdict(q) for q in (1.0, 3.0, 5.0, 7.0)] + [verdict(1.0), MISSING]
    result = agreement(first, second, NAMES)
    assert result["quality"] == {
        **{"n": 4, "equal": 0.25, "within_one": 0.5, "mean_difference": 1.5},
        "spearman": pytest.approx(1.0),
    }
    assert math.isnan(result["conciseness"]["spearman"])  # a judge that gives one score only
    assert result["conciseness"]["equal"] == 1.0


def test_lengths_and_rouge_by_hand():
    rows = [{"reward_model": {"ground_truth": text}} for text in ("a b c d", "a b")]
    result = texts(rows, ["a b c d", "x y z w"])
    assert (result["words_mean"], result["words_max"], result["reference_words_mean"]) == (4.0, 4.0, 3.0)
    assert result["rouge1"] == result["rougeL"] == 0.5


def write_evaluation(
    runs, method, seed, quality, *, rehearsal=False, second=False, reading="as_released", model=PAPERS_JUDGE
):
    folder = runs / f"{method}_{reading}_seed{seed}"
    (folder / "judged").mkdir(parents=True)
    cell = {"method": method, "reading": reading, "seed": seed, "overrides": []}
    (folder / "cell.json").write_text(json.dumps({**cell, "size_override": "toy" if rehearsal else None}))
    agreed = {name: dict.fromkeys(("n", "equal", "within_one", "spearman", "mean_difference"), 0.5) for name in NAMES}
    evaluations = [
        {
            "gemini": {"quality": quality + i, "conciseness": 9.0, "total": quality + 9.0 + i, "missing": 1},
            "texts": {"words_mean": 20.0, "rougeL": 0.3},
            "agreement": agreed,
        }
        for i in (0, 1)
    ]
    settings = {"first_judge": "gemini", "second_judge": "openai" if second else None, "limit": None, "rows": 256}
    judges = {"gemini": {"model": model, "temperature": 0.1}}
    source = {"commit": "abc", "machine": "m", "versions": "v", "command": "c"}
    content = {"settings": {**settings, "judge": judges}, "runs": evaluations, "provenance": source}
    (folder / "judged" / "evaluation.json").write_text(json.dumps(content))


def test_table_holds_ours_the_papers_and_what_was_not_run(tmp_path):
    write_evaluation(tmp_path, "saw_gdpo", 1, 8.0)
    write_evaluation(tmp_path, "saw_gdpo", 2, 9.0, second=True)
    text, rows, _ = TABLE.make(tmp_path)
    assert len(rows) == 7
    row = rows[-1]
    assert (row["method"], row["quality"], row["total"], row["seeds"], row["evaluations"]) == ("saw_gdpo", 9, 18, 2, 2)
    assert row["total_sd_seeds"] == pytest.approx(0.5**0.5)
    assert (row["paper_total"], row["paper_quality"]) == (19.07, 9.35)
    assert row["difference"] == pytest.approx(18 - 19.07)
    assert rows[0]["paper_quality"] is None
    assert text.count("| not run |") == 6
    assert "seed2, run 1: agreement of the two judges: quality: equal 0.50" in text
    assert f"judged by gemini ({PAPERS_JUDGE}); commit abc" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reading": "controlled"}, "reading"),
        ({"model": "another"}, "judge"),
        ({"rehearsal": True, "reading": "controlled"}, "reading; toy model"),
    ],
)
def test_what_was_not_measured_as_the_paper_did_has_no_difference(tmp_path, changes, reason):
    """Kind: a difference from the paper that comes from the set-up: reading, judge or model."""
    write_evaluation(tmp_path, "saw_gdpo", 1, 8.0, **changes)
    text, rows, _ = TABLE.make(tmp_path)
    (row,) = [row for row in rows if row["seeds"]]
    assert (row["difference"], row["not_compared_for"], row["paper_total"]) == (None, reason, 19.07)
    assert f"| 19.07 |  | {reason} |" in text


def test_a_rehearsal_says_so(tmp_path):
    write_evaluation(tmp_path, "grpo", 1, 8.0, rehearsal=True)
    assert "rehearsal with a toy model and a stand-in judge" in TABLE.make(tmp_path)[0]


@pytest.fixture
def ready(monkeypatch, tmp_path):
    """A machine with four GPUs, disk space and a key."""
    monkeypatch.setattr(common, "gpus_of_a_node", lambda: 4)
    monkeypatch.setattr(common, "free_bytes", lambda folder: 1e15)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("SAW_PLATFORM", raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")
    return ["--out", str(tmp_path / "out")]


def test_the_whole_table_is_six_rows_of_three_stages(ready, capsys):
    arguments = reproduce.parse([*ready, "--seeds", "1,2"])
    _, chains = reproduce.plan(arguments, {})
    assert len(chains) == 12
    assert all([stage.name for stage in stages] == ["train", "merge", "evaluate"] for stages in chains.values())
    assert reproduce.check(arguments) == []
    # 110 steps of 256 x 4, validation, 4 evaluations of 256; 800 tokens in, 30 out
    requests = 110 * 1024 + 13 * 256 + 4 * 256
    dollars = requests * (800 * 0.5 + 30 * 3.0) / 1e6
    printed = capsys.readouterr().out
    assert f"per training about {requests:,} requests" in printed
    assert f"12 trainings: ${dollars * 12:.0f}" in printed
    assert "sk-test" not in printed + str(chains)


@pytest.mark.parametrize("method", common.METHODS)
def test_a_training_command_composes(ready, method):
    _, chains = reproduce.plan(reproduce.parse([*ready, "--method", method, "--judge", "gemini"]), {})
    (stages,) = chains.values()
    config = compose("platform=gpu", *stages[0].command[2:])
    settings = check_config(config)
    assert (settings.method, settings.names, settings.max_missing) == (method, NAMES, 0.2)
    assert config.trainer.total_epochs * 2560 // config.data.train_batch_size == 110
    assert config.reward.custom_reward_function.reward_kwargs.judge.model == "gemini-3-flash-preview"


def test_a_missing_key_is_named_before_anything_runs(ready, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    assert any("'GEMINI_API_KEY', and that environment variable is not set" in line for line in missing(ready))
    monkeypatch.delenv("JUDGE_URL", raising=False)
    assert any("'JUDGE_URL' not found" in line for line in missing([*ready, "--judge", "server"]))


def test_a_dry_run_leaves_the_key_to_the_doctor_but_not_a_second_judge_s(ready, monkeypatch):
    """Kind: one fault is reported several times."""
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert missing([*ready, "--dry-run"]) == []
    (fault,) = missing([*ready, "--dry-run", "--second-judge", "openai"])
    assert "OPENAI_API_KEY" in fault


def test_a_rehearsal_s_dry_run_can_be_copied(tmp_path, monkeypatch):
    """Kind: an address in the shown commands at which nobody will ever listen."""
    shown = []
    monkeypatch.setattr("sys.argv", ["reproduce", "--rehearse", "--dry-run", "--out", str(tmp_path)])
    monkeypatch.setattr(common, "run_or_show", lambda arguments, missing, plan, *_: shown.append(plan))
    reproduce.main()
    ((shared, chains),) = shown
    server = shared[0].command
    assert server[:2] == ("-m", "recipes.tldr.stand_in_judge")
    port = server[server.index("--port") + 1]
    addresses = {stage.environment.get("JUDGE_URL") for stages in chains.values() for stage in stages}
    assert addresses - {None} == {f"http://127.0.0.1:{port}/v1"}


def missing(options):
    return reproduce.check(reproduce.parse(options))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--judge", "verl"], "judge 'verl' cannot be used here; expected one of gemini, openai, server"),
        (["--second-judge", "base"], "judge 'base' cannot be used here"),
        (["--rehearse", "--judge", "openai"], "takes no --source, --judge or --second-judge"),
    ],
)
def test_wrong_options_are_refused(ready, options, fault, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse([*ready, *options])
    assert fault in capsys.readouterr().err


def test_an_override_that_does_not_exist_is_named_before_anything_runs(ready):
    assert any("'nokey'" in line for line in missing([*ready, "nokey=1"]))
    assert missing([*ready, "--dry-run", "nokey=1"]) == []  # it ends with the doctor, which names it


def test_a_judge_that_cannot_be_configured_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_URL", raising=False)
    for name, overrides, fault in (("gemini", ["nokey=1"], "'nokey'"), ("server", [], "'JUDGE_URL' not found")):
        with pytest.raises(JudgeError, match=fault):
            judge_options(name, overrides, tmp_path / "faults")


def test_data_that_does_not_exist_is_named(tmp_path, monkeypatch, capsys):
    folders = ("--model", str(tmp_path), "--out", str(tmp_path / "out"))
    monkeypatch.setattr("sys.argv", ["evaluate", *folders, "--data", "nowhere.parquet"])
    with pytest.raises(SystemExit):
        evaluate_main()
    assert "--data nowhere.parquet: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_judge_that_only_verl_serves_cannot_evaluate(tmp_path):
    with pytest.raises(JudgeError, match="verl serves it only during training"):
        judge_options("verl", ["reward.reward_model.model_path=m"], tmp_path / "faults")
