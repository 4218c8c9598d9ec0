"""A training that is killed goes on from its last checkpoint, with the data that it would have seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from saw.launch import Run, RunFailed, processes_of
from saw.report import read_history
from tests.e2e.test_pipeline import LIMIT, SMALL

STEPS = 4


def make_run(folder: Path, data: tuple[Path, Path], model: Path) -> Run:
    command = [
        *(sys.executable, "-m", "saw.train", "experiment=quickstart", *SMALL[:2]),
        *(f"data.train_files={data[0]}", f"data.val_files={data[1]}", f"actor_rollout_ref.model.path={model}"),
        *(f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1", "trainer.resume_mode=auto"),
        *(f"trainer.default_local_dir={folder / 'checkpoints'}", f"trainer.rollout_data_dir={folder / 'rollouts'}"),
    ]
    return Run(command, folder, LIMIT, resume=True)


def prompts(folder: Path) -> dict[int, list[str]]:
    """The prompts of each step, in no order: they come back as the rollouts end."""
    return {
        int(path.stem): sorted(json.loads(line)["input"] for line in path.read_text().splitlines())
        for path in (folder / "rollouts").glob("*.jsonl")
    }


def test_a_killed_training_resumes_with_the_same_data(tmp_path, toy_data, warm_model):
    whole = make_run(tmp_path / "whole", toy_data, warm_model)
    whole.follow(lambda step, metrics: None)

    broken = make_run(tmp_path / "broken", toy_data, warm_model)

    def kill_after_two(step: int, metrics: dict) -> None:
        if step == 2:
            run_id = json.loads((broken.folder / "running.json").read_text())["run_id"]
            for process in processes_of(run_id):
                process.kill()

    with pytest.raises(RunFailed, match="exit code -9"):
        broken.follow(kill_after_two, interval=0.2)
    saved = int((broken.folder / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    assert saved >= 1

    broken.follow(lambda step, metrics: None)
    assert read_history(broken.metrics).steps == tuple(range(1, STEPS + 1))
    assert prompts(broken.folder) == prompts(whole.folder)
    assert broken.faults() == []
