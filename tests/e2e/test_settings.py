"""Settings of verl that change what is trained on, together in one run: LoRA, groups of several sizes, and the rest."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from saw.report import read_history
from saw.runs.process_tree import TrainingJob
from tests.e2e.test_pipeline import LIMIT

pytestmark = [pytest.mark.pipeline, pytest.mark.full, pytest.mark.cpu_platform]
PROMPTS, STEPS = 8, 2
CORRECTION = "algorithm.rollout_correction"
#: With ``bypass_mode`` the rollout's log-probabilities are the old ones; without, samples can be rejected.
MODES = {
    "bypass": [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=token"],
    "decoupled": [
        *(f"{CORRECTION}.rollout_is=sequence", f"{CORRECTION}.rollout_rs=token_k1"),
        f"{CORRECTION}.rollout_rs_threshold='0.999_1.001'",
    ],
}


@pytest.mark.parametrize("mode", MODES)
def test_settings_together(tmp_path, toy_data, warm_model, mode):
    table = pq.read_table(toy_data[0])
    sizes = [(2, 3, 4)[row % 3] for row in range(len(table))]
    pq.write_table(table.append_column("__rollout_n__", pa.array(sizes)), tmp_path / "train.parquet")
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart"),
        *(f"data.train_files={tmp_path / 'train.parquet'}", f"data.val_files={toy_data[1]}"),
        *(f"data.train_batch_size={PROMPTS}", f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}"),
        *(f"actor_rollout_ref.model.path={warm_model}", "actor_rollout_ref.model.lora_rank=8"),
        *("actor_rollout_ref.model.target_modules=all-linear", "actor_rollout_ref.rollout.load_format=safetensors"),
        *("actor_rollout_ref.rollout.calculate_log_probs=true", *MODES[mode]),
        *("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=reward"),
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
        *(f"trainer.total_training_steps={STEPS}", f"trainer.default_local_dir={tmp_path / 'checkpoints'}"),
        *(f"trainer.save_freq={STEPS}", f"trainer.rollout_data_dir={tmp_path / 'rollouts'}"),
    ]
    run = TrainingJob(command, tmp_path, LIMIT)
    run.follow(lambda step, metrics: None)
    assert run.faults() == []
    history = read_history(run.metrics)
    assert history.steps == (1, 2)
    for place in range(STEPS):
        assert sum(history.of(name, "weight")[place] for name in history.objectives) == pytest.approx(1.0)
        assert math.isfinite(history.columns["actor/grad_norm"][place])
        assert history.columns["saw/lost"][place] == 0
    assert max(history.columns["actor/grad_norm"]) > 0
    assert max(history.columns["training/filter_groups/evicted_samples"]) > 0
    # without bypass the trainer computes the old log-probabilities, and compares them with the rollout's
    assert ("rollout_corr/rollout_is_mean" in history.columns) == (mode == "decoupled")
    (checkpoint,) = (tmp_path / "checkpoints").glob(f"global_step_{STEPS}/actor/model_world_size_*.pt")
    weights = torch.load(checkpoint, weights_only=False)
    assert any("lora_B" in name and weights[name].full_tensor().abs().max() > 0 for name in weights)
    sizes_seen: set[int] = set()
    for file in (tmp_path / "rollouts").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        sizes_seen |= set(Counter((row["input"], row["gts"]) for row in rows).values())
    assert len(sizes_seen & set(sizes)) > 1
