"""Every method and option in the real pipeline, two steps each."""

from __future__ import annotations

import json
import math
import sys

import pytest

from saw.method.registry import METHODS
from saw.report import read_history
from saw.report.__main__ import main as report
from saw.runs.process_tree import TrainingJob
from tests.conftest import ROOT
from tests.e2e.test_pipeline import LIMIT, SMALL

pytestmark = pytest.mark.pipeline
#: (method, options), two steps each.
PLANS: list[tuple[str, dict]] = [
    *(
        (method, {})
        for method in ("grpo", "gdpo", "saw_grpo", "saw_gdpo", "random_grpo", "random_gdpo", "mo_grpo", "dvao")
    ),
    *((method, {}) for method in ("corr_grpo", "corr_gdpo", "gd2po", "gd2po_snr", "mgda", "gradnorm", "ctwa")),
    *((method, {}) for method in ("tchebycheff", "hvo")),
    ("lagrangian", {"lagrangian": {"targets": [None, 1.0]}}),
    ("static_grpo", {"static_weights": [1, 3]}),
    ("static_gdpo", {"static_weights": [1, 3]}),
    *(("saw_gdpo", {"informativeness": name}) for name in ("normalised_variance", "range_std", "advantage_entropy")),
    ("saw_grpo", {"informativeness": "group_spread", "over": "group"}),
    ("saw_grpo", {"ema": 0.5, "floor": 0.2, "max_change": 0.1}),
    ("saw_gdpo", {"log_only": True}),
    ("gradient_grpo", {"gradient": {"lr": 1e-6, "accumulate": 2}}),
    ("gradient_gdpo", {"gradient": {"lr": 1e-6, "layers": [1]}}),
    ("saw_gdpo", {"informativeness": "gradient_norm"}),
]


@pytest.mark.full
def test_every_method_trains(tmp_path, toy_data, warm_model):
    assert {method for method, _ in PLANS} == set(METHODS)
    steps = 2 * len(PLANS)
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart", *SMALL),
        *(
            f"data.train_files={toy_data[0]}",
            f"data.val_files={toy_data[1]}",
            f"actor_rollout_ref.model.path={warm_model}",
        ),
        *(f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={tmp_path / 'checkpoints'}"),
        *(f"trainer.save_freq={steps}", "trainer.test_freq=-1"),
    ]
    command += ["actor_rollout_ref.actor.optim.lr=1e-5"]  # the policy hardly changes: every batch has spread
    command += ["saw.method=gradient_grpo"]  # its workers compute gradients if a step asks for them
    command += [f"reward.custom_reward_function.path={ROOT / 'benchmarks' / 'changing_method.py'}"]
    run = TrainingJob(command, tmp_path, 2 * LIMIT, {"SAW_PLAN": json.dumps(PLANS), "SAW_PLAN_STEPS": "2"})
    run.follow(lambda step, metrics: None)
    history = read_history(run.metrics)
    assert history.steps == tuple(range(1, steps + 1))
    assert all(map(math.isfinite, history.columns["actor/grad_norm"]))
    weight, proposed = history.of("format", "weight"), history.of("format", "proposed_weight")

    def share(first: float, second: float) -> float:
        return first / (first + second) if first + second > 1e-8 else 0.5  # a batch this small may have no spread

    def rows(method: str, **options) -> list[int]:
        first = 2 * PLANS.index((method, options))
        return [first, first + 1]

    for method in ("grpo", "gdpo", "mo_grpo"):
        assert all(weight[row] == 0.5 for row in rows(method))
    cv = [history.of(name, "cv") for name in ("format", "correctness")]
    for row in (*rows("saw_grpo"), *rows("saw_gdpo")):
        assert math.isclose(weight[row], share(cv[0][row], cv[1][row]), rel_tol=1e-9)
    assert all(weight[row] == 0.25 for row in rows("static_grpo", static_weights=[1, 3]))
    drawn = [weight[row] for row in (*rows("random_grpo"), *rows("random_gdpo"))]
    assert len(set(drawn)) == 4
    before, after = rows("saw_grpo", ema=0.5, floor=0.2, max_change=0.1)
    assert abs(weight[after] - weight[before]) <= 0.1 + 1e-9
    assert all(weight[row] == 0.5 for row in rows("saw_gdpo", log_only=True))
    assert any(abs(proposed[row] - 0.5) > 1e-6 for row in rows("saw_gdpo", log_only=True))
    still, moved = rows("gradient_grpo", gradient={"lr": 1e-6, "accumulate": 2})
    assert weight[still] == weight[still - 1]
    influence = [
        history.of("format", "influence")[row] - history.of("correctness", "influence")[row] for row in (still, moved)
    ]
    odds = math.log(weight[still] / (1 - weight[still])) + 0.1 * sum(influence) / 2
    assert math.isclose(weight[moved], 1 / (1 + math.exp(-odds)), rel_tol=1e-9)
    first, _ = rows("saw_gdpo", informativeness="gradient_norm")
    norms = [history.of(name, "gradient_norm")[first] for name in ("format", "correctness")]
    assert math.isclose(weight[first], share(*norms), rel_tol=1e-9)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["total_steps"] == steps
    assert record["ranges"] == {"format": [0.0, 1.0], "correctness": [-3.0, 3.0]}
    assert record["provenance"]["command"].startswith("python -m saw train experiment=quickstart")
    report([str(tmp_path), "--out", str(tmp_path / "report")])
    assert "python -m saw train" in (tmp_path / "report" / "index.html").read_text()
    state = json.loads((tmp_path / "checkpoints" / f"global_step_{steps}" / "saw_state.json").read_text())
    assert state["weights"] == [weight[-1], history.of("correctness", "weight")[-1]]
    assert state["minima"] == {
        "format": min(history.of("format", "min")[row] for row in rows("saw_gdpo", log_only=True))
    }
    assert run.faults() == []
