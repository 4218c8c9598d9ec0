"""The asynchronous trainers in the real pipeline: two steps, and two more from the checkpoint, queue included."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from saw.report import read_history
from saw.runs.process_tree import TrainingJob
from tests.e2e.test_pipeline import LIMIT, SAME_POLICY

pytestmark = [pytest.mark.pipeline, pytest.mark.full, pytest.mark.cpu_platform]
PROMPTS, SAMPLES = 8, 4
#: ``late`` rises with the step at which a prompt was submitted, so that most of its rewards are below the range of the
#: step that trains on them. verl would sum the metrics with the names of the others, or take their minimum.
REWARD_FUNCTION = """
from saw.rewards import returns


def bounds(step, **kwargs):
    return {"late": (float(step), step + 1.0), "sum_total": (0.0, 1.0), "minimal": (0.0, 1.0)}


@returns("late", "sum_total", "minimal", bounds=bounds)
def reward(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    number = sum(solution_str.encode())
    return {
        "late": extra_info["global_step"] + number % 5 / 4,
        "sum_total": float(number % 2),
        "minimal": float(number % 3 == 0),
    }
"""
NAMES = ("late", "sum_total", "minimal")
MODES = {
    "saw_colocate_async": ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=reward"],
    "saw_separate_async": [
        *("trainer.v1.separate_async.parameter_sync_step=2", "actor_rollout_ref.actor.ppo_mini_batch_size=4"),
        *("actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1"),
        "actor_rollout_ref.rollout.checkpoint_engine.backend=cpu",
        *(f"actor_rollout_ref.{key}_micro_batch_size_per_gpu=16" for key in ("actor.ppo", "rollout.log_prob")),
    ],
}


def train(folder: Path, mode: str, steps: int, toy_data: tuple[Path, Path], model: Path, resume: bool) -> TrainingJob:
    (folder / "rewards.py").write_text(REWARD_FUNCTION)
    function = "reward.custom_reward_function"
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart", f"trainer.v1.trainer_mode={mode}"),
        *(f"data.train_files={toy_data[0]}", f"data.val_files={toy_data[1]}", f"data.train_batch_size={PROMPTS}"),
        *(f"actor_rollout_ref.rollout.n={SAMPLES}", f"actor_rollout_ref.model.path={model}"),
        *(f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}", "saw.options.ema=0.5"),
        *(f"{function}.path={folder / 'rewards.py'}", f"{function}.name=reward", "~saw.objectives.format"),
        *("~saw.objectives.correctness", *(f"+saw.objectives.{name}.priority=1" for name in NAMES)),
        *(f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={folder / 'checkpoints'}"),
        *("trainer.save_freq=1", "trainer.test_freq=2", "trainer.val_before_train=true", *MODES[mode]),
        f"trainer.resume_mode={'auto' if resume else 'disable'}",
    ]
    run = TrainingJob(command, folder, LIMIT, resume=resume)
    run.follow(lambda step, metrics: None)
    return run


@pytest.mark.parametrize("mode", MODES)
def test_an_asynchronous_training_and_its_resume(tmp_path, toy_data, warm_model, mode):
    for steps, resume in ((2, False), (4, True)):
        run = train(tmp_path, mode, steps, toy_data, warm_model, resume)
        assert run.faults() == []
    history = read_history(run.metrics)
    assert history.steps == (1, 2, 3, 4)
    assert history.objectives == NAMES
    for place, step in enumerate(history.steps):
        weights = [history.of(name, "weight")[place] for name in NAMES]
        assert sum(weights) == pytest.approx(1.0)
        assert 0 <= history.of("sum_total", "mean")[place] <= 1
        assert history.of("minimal", "max")[place] <= 1
        assert 1 <= history.of("late", "min")[place] <= step
        assert history.columns["saw/lost"][place] == 0
        assert math.isfinite(history.columns["actor/grad_norm"][place])
    assert max(history.columns["actor/grad_norm"]) > 0
    # vLLM samples from the trainer's weights, and the last mini-batch is compared with those of the step's beginning
    assert history.columns["training/rollout_probs_diff_mean"][0] < SAME_POLICY
    stale = history.columns["training/off_policy/trajectory_staleness_worst/max"]
    assert max(stale) >= 1  # trained on samples of an older policy
    # prompts of the previous step; those of step 2 that were unfinished are submitted again at step 3
    assert all(history.of("late", "min")[step - 1] < step for step in (2, 4))
    assert f"Restored {PROMPTS} training prompt groups" in run.log.read_text()  # the queue was in the checkpoint
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["trainer"]["v1"]["trainer_mode"] == mode
    state = json.loads((tmp_path / "checkpoints" / "global_step_4" / "saw_state.json").read_text())
    assert state["weights"] == pytest.approx([history.of(name, "weight")[-1] for name in NAMES])
