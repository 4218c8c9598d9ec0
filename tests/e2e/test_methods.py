"""Every method and option in the real pipeline, two steps each."""

from __future__ import annotations

import json
import math
import sys

from saw.launch import Run
from saw.methods import METHODS
from saw.report import read_history
from tests.conftest import ROOT
from tests.e2e.every_method import PLANS
from tests.e2e.test_pipeline import LIMIT, SMALL

IN_OTHER_TESTS = {"grpo", "gdpo", "saw_grpo", "saw_gdpo"}


def test_every_method_trains(tmp_path, toy_data, warm_model):
    assert {method for method, _ in PLANS} | IN_OTHER_TESTS == set(METHODS)
    steps = 2 * len(PLANS)
    command = [
        *(sys.executable, "-m", "saw.train", "experiment=quickstart", *SMALL),
        *(
            f"data.train_files={toy_data[0]}",
            f"data.val_files={toy_data[1]}",
            f"actor_rollout_ref.model.path={warm_model}",
        ),
        *(f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={tmp_path / 'checkpoints'}"),
        *(f"trainer.save_freq={steps}", "trainer.test_freq=-1"),
    ]
    command += [f"reward.custom_reward_function.path={ROOT / 'tests' / 'e2e' / 'every_method.py'}"]
    run = Run(command, tmp_path, 2 * LIMIT)
    run.follow(lambda step, metrics: None)
    history = read_history(run.metrics)
    assert history.steps == tuple(range(1, steps + 1))
    assert all(map(math.isfinite, history.columns["actor/grad_norm"]))
    weight, proposed = history.of("format", "weight"), history.of("format", "proposed_weight")

    def rows(method: str, **options) -> list[int]:
        first = 2 * PLANS.index((method, options))
        return [first, first + 1]

    assert all(weight[row] == 0.5 for row in rows("mo_grpo"))
    assert all(weight[row] == 0.25 for row in rows("static_grpo", static_weights=[1, 3]))
    drawn = [weight[row] for row in (*rows("random_grpo"), *rows("random_gdpo"))]
    assert len(set(drawn)) == 4
    before, after = rows("saw_grpo", ema=0.5, floor=0.2, max_change=0.1)
    assert abs(weight[after] - weight[before]) <= 0.1 + 1e-9
    assert all(weight[row] == 0.5 for row in rows("saw_gdpo", log_only=True))
    assert any(abs(proposed[row] - 0.5) > 1e-6 for row in rows("saw_gdpo", log_only=True))
    state = json.loads((tmp_path / "checkpoints" / f"global_step_{steps}" / "saw_state.json").read_text())
    assert state["weights"] == [0.5, 0.5]
    assert state["minima"] == {"format": min(history.of("format", "min")[-2:])}
    assert run.faults() == []
