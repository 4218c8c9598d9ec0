"""Dialogues of two turns with a calculator, in the real pipeline: where the advantages are, and the metrics."""

from __future__ import annotations

import math
import os
import sys

import pytest
import torch

from examples.calculator.prepare import write_data, write_model
from saw.report import read_history
from saw.runs.process_tree import TrainingJob
from tests.conftest import ROOT, python_path
from tests.e2e.test_pipeline import LIMIT, SAME_POLICY

pytestmark = [pytest.mark.pipeline, pytest.mark.full, pytest.mark.cpu_platform]
STEPS, SAMPLES = 2, 64
#: Keeps what the estimator gets and gives.
SPY = """
import torch
from wrapt import when_imported


@when_imported("saw.verl.estimator")
def keep(estimator):
    own = estimator.estimate

    def estimate(token_level_rewards, response_mask, **more):
        tokens, returns = own(token_level_rewards, response_mask, **more)
        step = estimator._step.get()
        kept = {"tokens": tokens, "mask": response_mask, "turns": step.turns, "rewards": step.rewards}
        torch.save(kept, f"FOLDER/step_{step.step}.pt")
        return tokens, returns

    estimator.estimate = estimate
"""


def test_turns_of_a_training(tmp_path):
    write_data(tmp_path)
    write_model(tmp_path / "model")
    (tmp_path / "spy.py").write_text(SPY.replace("FOLDER", str(tmp_path)))
    command = [
        *(sys.executable, "-m", "saw.runs.train", "--config-dir", str(ROOT / "examples"), "experiment=calculator"),
        *(f"data.train_files={tmp_path / 'train.parquet'}", f"data.val_files={tmp_path / 'test.parquet'}"),
        *(f"actor_rollout_ref.model.path={tmp_path / 'model'}", f"trainer.total_training_steps={STEPS}"),
        *("data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=16"),
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={ROOT / 'examples/calculator/tool.py'}",
        f"reward.custom_reward_function.path={ROOT / 'examples/calculator/reward.py'}",
        *(f"trainer.default_local_dir={tmp_path / 'checkpoints'}", "trainer.val_before_train=true"),
    ]
    path = os.pathsep.join([str(tmp_path), python_path()])
    run = TrainingJob(command, tmp_path, LIMIT, environment={"PYTHONPATH": path, "VERL_USE_EXTERNAL_MODULES": "spy"})
    run.follow(lambda step, metrics: None)
    # verl logs a call that is no JSON as an error; a toy model makes one now and then
    assert [line for line in run.faults() if "Failed to decode tool call" not in line] == []

    history = read_history(run.metrics)
    assert history.steps == (1, 2)
    assert history.objectives == ("call", "plain", "correct")
    # vLLM samples from the trainer's weights, in the second turn as well
    assert max(history.columns["training/rollout_probs_diff_mean"]) < SAME_POLICY
    assert math.isfinite(history.columns["actor/grad_norm"][-1])
    for place, number in enumerate(history.steps):
        kept = torch.load(tmp_path / f"step_{number}.pt")
        tokens, mask, turns, rewards = (kept[name] for name in ("tokens", "mask", "turns", "rewards"))
        assert not tokens[mask == 0].any()
        assert ((turns > 0) == (mask == 1)).all()
        second = (turns == 2).any(dim=1)
        assert 0 < second.sum() < SAMPLES  # some answer without the calculator
        assert (second == ~rewards[:, 1].isnan()).all()
        assert history.of("plain", "missing")[place] == SAMPLES - second.sum()
        # the tool's answer lies between the turns, and is not trained on
        between = (mask == 0) & (turns.cumsum(dim=1) > 0) & (turns.flip(1).cumsum(dim=1).flip(1) > 0)
        assert between[second].any(dim=1).all()
        differ = [len(set(tokens[row][mask[row] == 1].tolist())) for row in second.nonzero()[:, 0].tolist()]
        assert set(differ) <= {1, 2}
        assert 2 in differ  # one advantage per turn
