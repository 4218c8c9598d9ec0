"""SawGRPOTrainer in TRL: parity with TRL's own advantages, missing rewards, metrics, resume, and what is refused.

It is only collected where TRL is installed; ``test_trl_versions.py`` runs it elsewhere.
"""

import json
import logging
import math
import re
import runpy
import sys
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise

import pytest
import torch

import saw
from saw.machine.requirements import declared
from saw.report.__main__ import main as report
from saw.report.history import read_run
from saw.trl import SawGRPOTrainer
from saw.trl.run_log import RunLog
from saw.trl.settings import Settings
from saw.trl.trainer import STATE
from saw.trl.version import OLDEST, check_version
from tests.conftest import ROOT
from tests.contract.ranks import run_ranks
from tests.contract.trl_training import GROUP, NAMES, OBJECTIVES, both_advantages, make_trainer, rewards_of
from tests.methods import own_options

TRL = {"profile": "trl"}
#: TRL's aggregation and the method that is the same.
SAME = {"sum_then_normalize": "grpo", "normalize_then_sum": "gdpo"}


def close(found, expected, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=tolerance, rtol=0)


# ------------------------------------------------------------------ the advantages


@pytest.mark.parametrize(
    ("aggregation", "missing"),
    [("sum_then_normalize", 0.0), ("normalize_then_sum", 0.0), ("normalize_then_sum", 0.3)],
)
@pytest.mark.parametrize("weights", [None, [0.5, 2.0]], ids=["equal", "reward_weights"])
def test_trl_s_own_advantages(toy_model, tmp_path, aggregation, missing, weights):
    """With missing rewards too, where TRL leaves them out as we do."""
    found = both_advantages(
        toy_model,
        tmp_path,
        aggregation,
        method=SAME[aggregation],
        options=TRL,
        missing=missing,
        reward_weights=weights,
    )
    assert len(found["saw"]) == 2
    close(found["saw"], found["trl"])
    paper = advantages(0, 8, missing, method=SAME[aggregation], objectives=with_priorities(weights))
    assert (torch.tensor(found["saw"][0]) - paper.samples).abs().max() > 1e-5  # the profile matters


def with_priorities(weights: list[float] | None) -> list[saw.Objective]:
    return [saw.Objective(name, priority=weight) for name, weight in zip(NAMES, weights or [1.0, 1.0], strict=True)]


def advantages(done: int, number: int, missing: float = 0.0, lengths=None, **arguments) -> saw.Advantage:
    """What compute_advantage makes of the rewards after ``done`` steps, on one rank."""
    groups = [sample // GROUP for sample in range(number)]
    lengths = torch.ones(number) if lengths is None else torch.tensor(lengths)
    return saw.compute_advantage(rewards_of(done, number, missing), groups, lengths, **arguments)


@pytest.mark.slow
def test_two_ranks(toy_model, tmp_path):
    """Each rank has the advantages of its own samples, from the statistics of both."""
    cases = [{"aggregation": name, "method": method, "options": TRL} for name, method in SAME.items()]
    cases.append({"method": "saw_gdpo"})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    run_ranks("trl_training", 2, toy_model, tmp_path / "cases.json", tmp_path, CUDA_VISIBLE_DEVICES="")
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        for case in rank[:2]:
            close(case["saw"], case["trl"])
    first, second = (rank[2] for rank in ranks)
    rewards = torch.cat([seeded(0, rank) for rank in range(2)])
    lengths = torch.tensor(first["lengths"][0] + second["lengths"][0])
    expected = saw.compute_advantage(
        rewards, torch.arange(16) // GROUP, lengths, method="saw_gdpo", objectives=OBJECTIVES[::-1]
    )
    close(first["saw"][0] + second["saw"][0], expected.samples.float().tolist())
    assert first["logged"] == second["logged"]
    log = first["history"][0]
    assert [log[f"saw/{name}/weight"] for name in NAMES] == pytest.approx(expected.weights.tolist())


def seeded(step: int, rank: int) -> torch.Tensor:
    """The rewards of a rank."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("RANK", str(rank))
        return rewards_of(step, 8)


@pytest.mark.parametrize(
    "method",
    [
        *("grpo", "saw_grpo", "saw_gdpo", "random_gdpo", "static_gdpo", "mo_grpo", "dvao"),
        *("corr_grpo", "corr_gdpo", "gd2po", "gd2po_snr", "ctwa", "lagrangian", "tchebycheff", "hvo"),
    ],
)
def test_every_method_that_needs_no_gradients(toy_model, tmp_path, method):
    options = own_options(method)
    bounded = [replace(objective, maximum=10.0) for objective in OBJECTIVES]
    arguments = {"method": method, "options": options, "objectives": bounded}
    found = both_advantages(toy_model, tmp_path, max_steps=1, missing=0.3, **arguments)
    expected = advantages(
        0,
        8,
        0.3,
        found["lengths"][0],
        **arguments | {"objectives": bounded[::-1]},  # in the order of the reward functions
        step=1,
    )
    close(found["saw"][0], expected.samples.float().tolist())
    logged = found["history"][0]
    for values, what in ((expected.weights, "weight"), (expected.statistics.cv, "cv")):
        for name, value in zip(NAMES, values.tolist(), strict=True):
            assert logged[f"saw/{name}/{what}"] == pytest.approx(value)
    assert logged["saw/correctness/missing"] == int(rewards_of(0, 8, 0.3)[:, 0].isnan().sum())


def test_a_missing_reward_is_never_0(toy_model, tmp_path):
    """TRL counts it as 0 where it sums the rewards first, and we leave it out."""
    found = both_advantages(toy_model, tmp_path, method="grpo", options=TRL, missing=0.3, max_steps=1)
    rewards = rewards_of(0, 8, 0.3)
    assert rewards.isnan().any()
    groups = torch.arange(8) // GROUP
    zeros = saw.compute_advantage(rewards.nan_to_num(0.0), groups, torch.ones(8), method="grpo", options=TRL)
    close(found["trl"][0], zeros.samples.float().tolist())
    left_out = saw.compute_advantage(rewards, groups, torch.ones(8), method="grpo", options=TRL)
    close(found["saw"][0], left_out.samples.float().tolist())
    assert (torch.tensor(found["trl"][0]) - torch.tensor(found["saw"][0])).abs().max() > 0.1


@pytest.mark.parametrize("method", ["saw_grpo", "saw_gdpo"])
def test_a_sample_without_any_reward_has_advantage_0(toy_model, tmp_path, method):
    values = rewards_of(0, 8).index_fill(0, torch.tensor([2, 5]), math.nan)

    def function(column: int):
        def rewards(prompts, **_):
            return [None if math.isnan(value) else value for value in values[:, column].tolist()]

        rewards.__name__ = NAMES[column]
        return rewards

    found = both_advantages(toy_model, tmp_path, method=method, functions=[function(0), function(1)], max_steps=1)
    lengths = torch.tensor(found["lengths"][0])
    expected = saw.compute_advantage(
        values, torch.arange(8) // GROUP, lengths, method=method, objectives=OBJECTIVES[::-1]
    )
    close(found["saw"][0], expected.samples.float().tolist())
    assert found["saw"][0][2] == found["saw"][0][5] == 0.0


@pytest.mark.parametrize(
    ("arguments", "batches"),
    [
        ({}, [0, 1, 2, 3]),  # one generation batch per optimiser step
        ({"steps_per_generation": 2}, [0, 2]),  # one for two steps
        ({"num_iterations": 2}, [0, 2]),  # used twice
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, [0, 0, 1, 1, 2, 2, 3, 3]),  # two per step
    ],
)
def test_weights_are_of_one_generation_batch(toy_model, tmp_path, arguments, batches):
    found = both_advantages(toy_model, tmp_path, max_steps=4, **arguments)
    number = len(found["saw"][0])
    assert number == 8 * arguments.get("steps_per_generation", 1)
    for step, samples, lengths in zip(batches, found["saw"], found["lengths"], strict=True):
        expected = advantages(step, number, lengths=lengths, method="saw_gdpo", objectives=OBJECTIVES[::-1])
        close(samples, expected.samples.float().tolist())
    logs = [row["step"] for row in found["history"] if "saw/format/weight" in row]
    assert logs == sorted({step + 1 for step in batches})


# ------------------------------------------------------------------ logs, and the report


def test_the_table_of_completions_has_the_advantages_that_are_trained_on(toy_model, tmp_path):
    """The neighbour: an evaluation of fewer samples than the table holds leaves the others where they are."""
    trainer = make_trainer(
        toy_model, tmp_path, evaluate=True, max_steps=1, num_generations_eval=1, per_device_eval_batch_size=4
    )
    trainer.train()
    trained = list(trainer._logs["advantages"])
    assert len(trained) == len(trainer._logs["prompt"]) == 8
    trainer.evaluate()
    assert list(trainer._logs["advantages"]) == [*trained[4:], 0.0, 0.0, 0.0, 0.0]


@pytest.mark.slow
def test_the_report_reads_the_logs(toy_model, tmp_path, capsys):
    for seed in (1, 2):
        trainer = make_trainer(
            toy_model, tmp_path / "runs" / str(seed), evaluate=True, eval_strategy="steps", eval_steps=2, seed=seed
        )
        trainer.train()
    run = read_run(tmp_path / "runs" / "1")
    assert run.history.objectives == NAMES
    assert (run.method, run.seed, run.total_steps, run.history.steps) == ("saw_gdpo", 1, 2, (1, 2))
    assert run.history.of("format", "mean")[0] == pytest.approx(rewards_of(0, 8)[:, 1].mean().item())
    assert set(run.validation) == {2}
    assert run.validation[2]["saw-val/format/mean"] == pytest.approx(rewards_of(2, 8)[:, 1].mean().item())
    assert run.info["ranges"] == {"correctness": [-3.0, None], "format": [0.0, 4.0]}
    assert f"trl {version('trl')}" in run.info["provenance"]["versions"]
    report([str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    printed = capsys.readouterr().out
    assert re.search(r"\| saw_gdpo \| format \| .*n = 2", printed), printed  # two seeds of one method
    assert "left out" not in printed


@pytest.mark.slow
def test_the_example(warm_model, tmp_path, monkeypatch, capsys):
    """It trains, with the ranges of ToolRL's rewards, and its log is one for the report."""
    (tmp_path / "model").symlink_to(warm_model)
    monkeypatch.setattr(sys, "argv", ["trl_cpu.py", "--steps", "2", "--seed", "3", "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "trl_cpu.py"), run_name="__main__")
    assert re.search(r"^format: mean [\d.]+ to [\d.]+, weight [\d.]+ to [\d.]+$", capsys.readouterr().out, re.M)
    run = read_run(tmp_path / "saw_gdpo_seed3")
    assert (run.method, run.seed, run.history.steps) == ("saw_gdpo", 3, (1, 2))
    assert run.history.of("correctness", "missing")[0] % 4 == 0  # whole groups, in which no tool is wanted


def test_a_resumed_training_goes_on_where_it_stopped(toy_model, tmp_path):
    """The weights of a method that remembers are those of a training that was not interrupted; so is its log."""
    arguments = {"options": {"ema": 0.8}, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(toy_model, tmp_path / "whole", max_steps=4, **arguments)
    whole.train()
    weights = [row["saw/format/weight"] for row in whole.state.log_history if "saw/format/weight" in row]
    assert all(abs(one - other) > 1e-3 for one, other in pairwise(weights))
    make_trainer(toy_model, tmp_path / "halves", max_steps=2, **arguments).train()
    state = json.loads((tmp_path / "halves" / "checkpoint-2" / STATE).read_text())
    assert state["previous_weights"][1] == pytest.approx(weights[1])
    resumed = make_trainer(toy_model, tmp_path / "halves", max_steps=4, **arguments)
    resumed.train(resume_from_checkpoint=True)
    history = read_run(tmp_path / "halves").history
    assert history.steps == (1, 2, 3, 4)
    assert history.of("format", "weight") == pytest.approx(weights)


def test_what_a_method_remembers_survives_a_resume(toy_model, tmp_path):
    """A Lagrangian's multipliers, which no weights are needed for."""
    options = {"lagrangian": {"targets": (None, 5.0), "lr": 0.5}}
    arguments = {"method": "lagrangian", "options": options, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(toy_model, tmp_path / "whole", max_steps=4, **arguments)
    whole.train()
    weights = [row["saw/format/weight"] for row in whole.state.log_history if "saw/format/weight" in row]
    make_trainer(toy_model, tmp_path / "halves", max_steps=2, **arguments).train()
    state = json.loads((tmp_path / "halves" / "checkpoint-2" / STATE).read_text())
    assert state["memory"].keys() == {"multipliers"}
    resumed = make_trainer(toy_model, tmp_path / "halves", max_steps=4, **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert read_run(tmp_path / "halves").history.of("format", "weight") == pytest.approx(weights)
    assert weights[3] != pytest.approx(weights[1])


def test_a_checkpoint_of_another_training_is_not_silently_used(toy_model, tmp_path, caplog):
    arguments = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(toy_model, tmp_path, max_steps=1, **arguments).train()
    state = tmp_path / "checkpoint-1" / STATE
    trainer = make_trainer(toy_model, tmp_path, **arguments)
    for change, message in (
        ({"objectives": ["format"]}, r"objectives .* \['format'\].*\['correctness', 'format'\]"),
        ({"method": "gdpo"}, r"method .* 'gdpo'.*'saw_gdpo'"),
    ):
        saved = json.loads(state.read_text())
        state.write_text(json.dumps(saved | change))
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=True)
        state.write_text(json.dumps(saved))
    state.unlink()
    with caplog.at_level(logging.WARNING, logger="saw.trl.trainer"):
        trainer.train(resume_from_checkpoint=True)
    assert STATE in caplog.text


def test_an_earlier_training_s_metrics_are_not_mixed_with_the_new_ones(toy_model, tmp_path):
    make_trainer(toy_model, tmp_path, max_steps=3).train()
    make_trainer(toy_model, tmp_path, max_steps=1).train()
    assert read_run(tmp_path).history.steps == (1,)


# ------------------------------------------------------------------ no rewards


def nothing(prompts, **_):
    return [None] * len(prompts)


def test_a_batch_without_any_reward_stops_a_training_but_not_an_evaluation(toy_model, tmp_path):
    def only_in_training(prompts, **_):
        return [1.0] * len(prompts) if trainer.model.training else [None] * len(prompts)

    trainer = make_trainer(
        toy_model, tmp_path, functions=[only_in_training, nothing], objectives=None, evaluate=True, max_steps=1
    )
    trainer.train()
    trainer.evaluate()
    trainer = make_trainer(toy_model, tmp_path, functions=[nothing], objectives=None)
    with pytest.raises(ValueError, match=r"no rewards: all 8 values are missing"):
        trainer.train()


def test_a_reward_below_its_minimum_is_named(toy_model, tmp_path):
    trainer = make_trainer(toy_model, tmp_path, objectives=[saw.Objective(name, minimum=0.5) for name in NAMES])
    with pytest.raises(ValueError, match=r"the reward of '\w+' is -?[\d.]+ for sample \d+, below its minimum 0\.5"):
        trainer.train()


# ------------------------------------------------------------------ what is refused, before a step


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "ppo"}, ["'ppo'", "saw_gdpo"]),
        ({"method": "gradient_gdpo"}, ["gradient_gdpo", "policy gradients", "verl"]),
        ({"options": {"informativeness": "gradient_norm"}}, ["'gradient_norm'", "policy gradients"]),
        ({"options": {"informativeness": "range_std"}}, ["'correctness'", "maximum"]),
        ({"options": {"floor": 0.9}}, ["floor", "0.9"]),
        ({"options": {"profile": "new"}}, ["'new'", "trl"]),
        ({"method": "static_gdpo"}, ["static_weights"]),
        ({"objectives": [saw.Objective("format")]}, ["'format'", "'correctness', 'format'"]),
        ({"objectives": [replace(OBJECTIVES[0], turn=2), OBJECTIVES[1]]}, ["'format' belongs to turn 2", "TRL"]),
        ({"objectives": [*OBJECTIVES, saw.Objective("length")]}, ["'length'"]),
        ({"objectives": [OBJECTIVES[0]] * 2}, ["'format'", "duplicate"]),
        ({"functions": ["format", "format"]}, ["'format'", "__name__"]),
        (
            {"objectives": [saw.Objective("format", priority=2.0), OBJECTIVES[1]], "reward_weights": [1.0, 1.0]},
            ["reward_weights", "[1.0, 1.0]", "'format'", "2.0"],
        ),
        ({"reward_weights": [1.0, -1.0]}, ["'format'", "-1.0"]),
    ],
)
def test_settings_that_cannot_work_are_named(arguments, words):
    given = {"method": "saw_gdpo", "objectives": OBJECTIVES, "options": None, "functions": NAMES} | arguments
    with pytest.raises(ValueError, match=r".") as error:
        Settings.of(**{"reward_weights": None, **given})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("scale_rewards", "none"), ("scale_rewards", "batch"), ("multi_objective_aggregation", "normalize_then_sum")],
)
def test_trl_s_own_aggregation_is_refused(toy_model, tmp_path, argument, value):
    with pytest.raises(ValueError, match=rf"args\.{argument} is '{value}'.*default"):
        make_trainer(toy_model, tmp_path, **{argument: value})


def test_priorities_are_trl_s_reward_weights(toy_model, tmp_path):
    trainer = make_trainer(toy_model, tmp_path, objectives=with_priorities([0.5, 2.0]))
    assert trainer.reward_weights.tolist() == [0.5, 2.0]
    trainer = make_trainer(toy_model, tmp_path, reward_weights=[0.1, 2.0])
    assert [objective.priority for objective in trainer.saw_settings.objectives] == [0.1, 2.0]


# ------------------------------------------------------------------ versions


def test_the_log_is_one_of_the_trainer_s_callbacks(toy_model, tmp_path):
    trainer = make_trainer(toy_model, tmp_path)
    assert [type(callback) for callback in trainer.callback_handler.callbacks].count(RunLog) == 1
    assert isinstance(trainer, SawGRPOTrainer)


def test_an_old_or_absent_trl_is_named(monkeypatch):
    monkeypatch.setattr("saw.trl.version.version", lambda name: "0.29.1")
    with pytest.raises(ImportError, match=rf"TRL {OLDEST} or newer, and 0\.29\.1"):
        check_version()
    (need,) = [need for need in declared(["trl"]) if need.name == "trl"]
    assert str(need.specifier) == f">={OLDEST}"
