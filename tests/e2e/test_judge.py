"""Rewards from an LLM judge in the real pipeline: right, missing, too often missing; its key is written nowhere."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_prep import tldr
from data_prep.toy_tldr import make_posts, write_posts
from recipes.quickstart import toy_model
from recipes.tldr.stand_in_judge import FAULTS, StandIn, serving
from saw.report import read_history
from saw.rewards.judge import prompt
from saw.runs.process_tree import JobFailed, TrainingJob
from tests.conftest import PLATFORM, ROOT

pytestmark = pytest.mark.pipeline
LIMIT = 900
JUDGE = "reward.custom_reward_function.reward_kwargs.judge"
KEY = "sk-secret-4f9a1c77e2"
SHORT_PROMPT = "Human: <human>$human_summary</human> Model: <model>$model_summary</model> JSON with two scores:"


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    """A toy model that writes summaries, good and bad."""
    return toy_model.make_toy_model(tmp_path_factory.mktemp("writer") / "model", task="tldr", steps=60)


@pytest.fixture(scope="module")
def data(tmp_path_factory, writer) -> Path:
    folder = tmp_path_factory.mktemp("tldr")
    write_posts(folder / "posts.jsonl", 80)
    tldr.prepare(folder, source=str(folder / "posts.jsonl"), tokenizer=str(writer), sizes=(32, 4))
    return folder


def make_run(folder: Path, data: Path, writer: Path, *overrides: str, **environment: str) -> TrainingJob:
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=tldr", "size=toy", "judge=server"),
        *("data.max_prompt_length=192", "actor_rollout_ref.rollout.max_model_len=240", "trainer.n_gpus_per_node=1"),
        *(f"data.train_files={data / 'train.parquet'}", f"data.val_files={data / 'test.parquet'}"),
        *(f"actor_rollout_ref.model.path={writer}", f"trainer.default_local_dir={folder / 'checkpoints'}"),
        *(f"trainer.rollout_data_dir={folder / 'rollouts'}", f"{JUDGE}.cache={folder / 'verdicts.sqlite'}"),
        *overrides,
    ]
    return TrainingJob(command, folder, LIMIT, environment=environment, resume=True)


def prompts(folder: Path) -> dict[int, Counter]:
    return {
        int(path.stem): Counter(json.loads(line)["input"] for line in path.read_text().splitlines())
        for path in (folder / "rollouts").glob("*.jsonl")
    }


@pytest.fixture
def of_ray() -> Iterator[Path]:
    """A folder for the sessions of Ray that a test starts; its sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_a_judge_that_fails_too_often_stops_the_run_and_nothing_is_lost(tmp_path, of_ray, data, writer, monkeypatch):
    """Steps with right verdicts and some missing; then none; a checkpoint; then it resumes with the same data.

    The judge needs a key, which must be in no file of the run.
    """
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    stand_in = StandIn(latency=0.01, faults=dict.fromkeys(FAULTS, 0.2 / len(FAULTS)))
    with serving(stand_in) as address:
        run = make_run(
            tmp_path / "run",
            data,
            writer,
            *("trainer.total_training_steps=4", "trainer.save_freq=-1", "trainer.test_freq=4"),
            *("trainer.logger=[console,file,wandb]", f"{JUDGE}.timeout=1", f"{JUDGE}.attempts=3"),
            *(f"{JUDGE}.api_key_env=JUDGE_KEY", "reward.num_workers=3", f"{JUDGE}.in_flight=4"),
            JUDGE_URL=address,
            JUDGE_KEY=KEY,
            WANDB_MODE="offline",
            RAY_TMPDIR=str(of_ray),
        )

        def fail_after_two(step: int, metrics: dict) -> None:
            if step == 2:
                stand_in.faults = {"not_json": 1.0}

        with pytest.raises(JobFailed, match=r"have no reward 'quality', and saw.max_missing is 0.2") as failure:
            run.follow(fail_after_two, interval=0.05)
        checkpoints = run.folder / "checkpoints"
        stopped_at = int((checkpoints / "latest_checkpointed_iteration.txt").read_text()) + 1
        assert stopped_at in (3, 4)  # a step may end before the judge starts to fail
        assert f"step {stopped_at}: 100.0% of the samples" in str(failure.value)
        assert "judge_faults.jsonl" in str(failure.value)
        faults = [json.loads(line) for line in (checkpoints / "judge_faults.jsonl").read_text().splitlines()]
        assert any("no JSON object" in fault["fault"] for fault in faults)

        stand_in.faults = {}
        run.follow(lambda step, metrics: None)
    history = read_history(run.metrics)
    assert history.steps == (1, 2, 3, 4)
    assert sum(history.columns["judge/requests"]) > 0
    assert all(seconds > 0 for seconds in history.columns["judge/seconds/max"])
    assert history.of("quality", "max")[3] <= 10
    # four batches of eight are the whole data, each post once: the repeated step got the same posts
    seen = sum(prompts(run.folder).values(), Counter())
    assert len(seen) == 32
    assert set(seen.values()) == {4}
    samples = [json.loads(line) for line in (checkpoints / "val_samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} >= {0, 4}
    assert set(samples[-1]["rewards"]) == {"quality", "conciseness"}

    assert stand_in.most_in_flight <= 4  # over all three reward workers
    assert stand_in.keys == {f"Bearer {KEY}"}
    assert len(list(of_ray.glob("ray/session_2*"))) == 2
    searched = 0
    for root in (tmp_path, of_ray):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_socket() and os.access(path, os.R_OK):
                searched += 1
                assert KEY.encode() not in path.read_bytes(), path
    assert searched > 50
    assert list(tmp_path.rglob("*.wandb"))


def make_judge(folder: Path) -> Path:
    """A toy model that answers a short prompt, with JSON about half of the time."""
    chance = random.Random(0)
    template = prompt.load(_write(folder / "short.txt", SHORT_PROMPT))
    rows: list[toy_model.Example] = []
    for post in make_posts(400):
        summary = toy_model.ramble(post["completion"], chance)
        fields = {"human_summary": post["completion"], "model_summary": summary, "reddit_text": ""}
        scores = {"quality": {"score": chance.randint(3, 9)}, "conciseness": {"score": chance.randint(3, 9)}}
        rows.append(([{"role": "user", "content": prompt.fill(template, fields)}], json.dumps(scores)))
    tokenizer = toy_model.train_tokenizer(rows)
    model = toy_model.make_model(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)

    def spoilt(answer: str, chance: random.Random) -> str:
        return answer if chance.random() < 0.6 else answer[: len(answer) // 2]

    toy_model.warm_up(model, tokenizer, rows, spoilt, steps=80, batch_size=16, seed=0)
    tokenizer.save_pretrained(folder / "judge")
    model.save_pretrained(folder / "judge")
    return folder / "judge"


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.full
@pytest.mark.skipif(PLATFORM == "gpu" and torch.accelerator.device_count() < 2, reason="the judge needs a second GPU")
def test_a_judge_that_verl_serves(tmp_path, data, writer):
    """A second vLLM in the cluster behind verl's router; a small model whose replies are garbage half of the time."""
    judge = make_judge(tmp_path)
    run = make_run(
        tmp_path / "run",
        data,
        writer,
        *("judge=verl", f"reward.reward_model.model_path={judge}", f"{JUDGE}.prompt={tmp_path / 'short.txt'}"),
        *(f"{JUDGE}.temperature=1.0", f"{JUDGE}.max_tokens=40", "saw.max_missing=0.95"),
        *("trainer.save_freq=-1", "trainer.val_before_train=false"),
    )
    run.follow(lambda step, metrics: None)
    history = read_history(run.metrics)
    assert history.steps == (1, 2)
    missing = history.of("quality", "missing")
    assert missing == history.of("conciseness", "missing")  # one reply, two scores
    assert 0 < sum(missing) < 2 * 32
    assert all(0 <= value <= 10 for value in history.of("quality", "mean"))
    assert all(map(math.isfinite, history.columns["actor/grad_norm"]))
    assert (run.folder / "checkpoints" / "judge_faults.jsonl").exists()


@pytest.mark.full
@pytest.mark.cpu_platform  # a rehearsal trains on the CPU
def test_table_2_is_rehearsed_from_posts_to_table(tmp_path):
    """The same stages and commands as at full size, with a stand-in judge that fails now and then."""

    def rehearse(*options: str, timeout: float = LIMIT) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "recipes.tldr.reproduce", "--rehearse", "--out", str(tmp_path), *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    result = rehearse()
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    folder = tmp_path / "saw_gdpo_controlled_seed1"
    assert read_history(folder / "metrics.jsonl").objectives == ("quality", "conciseness")
    evaluation = json.loads((folder / "judged" / "evaluation.json").read_text())
    assert len(evaluation["runs"]) == 2
    for scored in evaluation["runs"]:
        assert 0 <= scored["server"]["total"] <= 20
        assert scored["texts"]["words_mean"] > 0
    table = (tmp_path / "table2.md").read_text()
    assert "| saw_gdpo | controlled | 1 x 2 |" in table
    assert table.count("| not run |") == 5
    again = rehearse(timeout=120)
    assert again.stdout.count("already done, skipped") == 6
