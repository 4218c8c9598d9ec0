"""A reward function that raises and a reward worker that dies, in the real pipeline: no sample is lost silently."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from saw.report import read_history
from saw.runs.process_tree import JobFailed, TrainingJob
from tests.e2e.test_pipeline import LIMIT

pytestmark = pytest.mark.pipeline
REWARD_FUNCTION = '''
"""Two rewards, which half of the answers make raise, but no reference.

The second step takes one of the reward workers down.
"""
import json
import os

import numpy as np


def reward(data_source, solution_str, ground_truth, extra_info=None, ledger=None, **kwargs):
    if solution_str == ground_truth:  # tried before Ray starts
        return {"format": 1.0, "correctness": 0.0}
    step = extra_info.get("global_step")
    readable = sum(solution_str.encode()) % 2 == 0
    if step is not None:
        if step == 2:
            try:
                os.close(os.open(f"{ledger}.dead", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os._exit(1)
        words = len(solution_str.split())
        line = json.dumps({"step": step, "readable": readable, "words": words, "question": extra_info["index"]})
        with open(ledger, "a") as file:
            file.write(line + "\\n")
    if step is not None and not readable:
        raise KeyError("tool_call")
    return {"format": np.float32(1.0), "correctness": np.int64(min(len(solution_str.split()), 9) - 3)}
'''

PROMPTS, SAMPLES = 8, 4


def make_run(folder: Path, toy_data: tuple[Path, Path], model: Path, *overrides: str) -> TrainingJob:
    folder.mkdir(exist_ok=True)
    (folder / "rewards.py").write_text(REWARD_FUNCTION)
    function = "reward.custom_reward_function"
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart"),
        *(f"data.train_files={toy_data[0]}", f"data.val_files={toy_data[1]}"),
        *(f"data.train_batch_size={PROMPTS}", f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}"),
        *(f"actor_rollout_ref.rollout.n={SAMPLES}", f"actor_rollout_ref.model.path={model}"),
        *(f"{function}.path={folder / 'rewards.py'}", f"{function}.name=reward", "reward.num_workers=2"),
        f"+{function}.reward_kwargs.ledger={folder / 'ledger.jsonl'}",
        *("+saw.objectives.format.minimum=0", "+saw.objectives.correctness.minimum=-3"),
        *("trainer.total_training_steps=3", f"trainer.default_local_dir={folder / 'checkpoints'}"),
        *("trainer.val_before_train=true", "trainer.log_val_generations=4", *overrides),
    ]
    return TrainingJob(command, folder, LIMIT)


def ledger(folder: Path, step: int) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["step"] == step]


def test_failed_rewards_and_lost_samples_are_counted(tmp_path, toy_data, toy_model):
    """The reward function's own counts and the metrics agree: step 0 is the validation, step 1 has all its samples."""
    run = make_run(tmp_path, toy_data, toy_model)
    run.follow(lambda step, metrics: None)
    history = read_history(run.metrics)
    assert history.steps == (1, 2, 3)
    asked = PROMPTS * SAMPLES
    lost, failed = history.columns["saw/lost"], history.columns["saw/failed"]
    assert lost[0] == 0
    assert lost[1] > 0
    assert lost[2] > 0  # verl keeps calling the dead worker
    for place, step in enumerate(history.steps):
        book = ledger(tmp_path, step)
        if step != 2:  # in step 2 the dead worker lost samples that it had already counted
            assert asked - lost[place] == len(book)
            assert failed[place] == sum(not line["readable"] for line in book)
            rewards = [min(line["words"], 9) - 3 for line in book if line["readable"]]
            assert history.of("correctness", "mean")[place] == pytest.approx(sum(rewards) / len(rewards))
        assert history.of("format", "missing")[place] == failed[place]
    assert failed[0] > 0
    validation = json.loads(run.metrics.read_text().splitlines()[0])["data"]
    book = ledger(tmp_path, 0)
    assert validation["saw-val/failed"] == sum(not line["readable"] for line in book)
    assert validation["saw-val/format/missing"] == validation["saw-val/failed"]
    assert validation["saw-val/lost"] == 0
    sources = [name for name in validation if name.endswith("/reward/mean@1")]
    scores = [min(line["words"], 9) - 2 for line in book if line["readable"]]
    assert [validation[name] for name in sources] == [pytest.approx(sum(scores) / len(scores))]
    log = run.log.read_text()
    assert "the reward function failed" in log
    assert "KeyError: 'tool_call'" in log
    assert f"step 3: {lost[2]:.0f} of {asked} samples were lost" in log


@pytest.mark.full
def test_too_many_failed_rewards_stop_the_run(tmp_path, toy_data, toy_model):
    """saw.max_missing limits the share of lost and failed samples."""
    run = make_run(tmp_path, toy_data, toy_model, "saw.max_missing=0.01", "trainer.val_before_train=false")
    with pytest.raises(JobFailed, match=r"have no reward '(format|correctness)'.*saw\.max_missing is 0\.01"):
        run.follow(lambda step, metrics: None)
    assert "\nsaw: step 1: " in run.log.read_text()  # the end of the command is that message, not a traceback
