"""The whole pipeline on a GPU: two steps of each aggregation and of the gradient methods. Needs the whole GPU set."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import find_spec

import pytest

if find_spec("vllm") is None or find_spec("verl") is None:
    pytest.skip("needs verl and vLLM", allow_module_level=True)

from saw.report import read_history
from saw.runs.process_tree import TrainingJob
from tests.conftest import PLATFORM, ROOT
from tests.e2e.test_pipeline import LIMIT, SAME_POLICY, SMALL

#: On a CPU tests/e2e/test_methods.py has all of it, and more.
pytestmark = [pytest.mark.e2e, pytest.mark.pipeline] + [pytest.mark.full] * (PLATFORM == "cpu")
GRADIENT = {"gradient": {"lr": 1e-6}}
PLAN: list[tuple[str, dict]] = [
    *((method, {}) for method in ("grpo", "gdpo", "saw_grpo", "saw_gdpo")),
    *(("gradient_grpo", GRADIENT), ("gradient_gdpo", GRADIENT)),
    ("saw_gdpo", {"informativeness": "gradient_norm"}),
]


def test_two_steps_of_each_method(tmp_path, toy_data, warm_model):
    """One start for all: the trainer takes another method every two steps."""
    steps = 2 * len(PLAN)
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart", *SMALL, "saw.method=gradient_grpo"),
        *(f"data.train_files={toy_data[0]}", f"data.val_files={toy_data[1]}"),
        *(f"actor_rollout_ref.model.path={warm_model}", f"trainer.total_training_steps={steps}"),
        # the toy needs little of a GPU, which may have other work
        *(["actor_rollout_ref.rollout.gpu_memory_utilization=0.1"] if PLATFORM == "gpu" else []),
        *(f"trainer.default_local_dir={tmp_path / 'checkpoints'}", "trainer.test_freq=-1"),
        f"reward.custom_reward_function.path={ROOT / 'benchmarks' / 'changing_method.py'}",
    ]
    run = TrainingJob(command, tmp_path, 2 * LIMIT, {"SAW_PLAN": json.dumps(PLAN), "SAW_PLAN_STEPS": "2"})
    run.follow(lambda step, metrics: None)
    history = read_history(run.metrics)
    assert history.steps == tuple(range(1, steps + 1))
    for metric in ("actor/grad_norm", "actor/pg_loss", "critic/advantages/max", "critic/score/mean"):
        assert all(map(math.isfinite, history.columns[metric])), metric
    assert max(history.columns["training/rollout_probs_diff_mean"]) < SAME_POLICY

    def rows(number: int) -> tuple[int, int]:
        return 2 * number, 2 * number + 1

    weights = [history.of(name, "weight") for name in history.objectives]
    for number, (method, _) in enumerate(PLAN):
        for row in rows(number):
            assert sum(weight[row] for weight in weights) == pytest.approx(1)
            if method in ("grpo", "gdpo"):
                assert {weight[row] for weight in weights} == {0.5}
    for number, (method, options) in enumerate(PLAN):
        if method.startswith("gradient") or options:
            norms = [history.of(name, "gradient_norm")[row] for name in history.objectives for row in rows(number)]
            assert all(map(math.isfinite, norms)), method
            assert max(norms) > 0, method
    # The memory that torch holds on the accelerator is 0 where there is none.
    assert (min(history.columns["actor/perf/max_memory_allocated_gb"]) > 0) == (PLATFORM == "gpu")
    assert run.faults() == []
