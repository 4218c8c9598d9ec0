"""Parity of the other papers' methods with numbers computed by released code (tests/golden/README.md)."""

import json
from functools import cache

import numpy as np
import pytest
import torch

import saw
from saw.method.inputs import check_objectives, make_batch
from saw.method.multi_gradient import shortest
from saw.method.profiles import PAPER
from saw.method.registry import METHODS
from tests.conftest import GOLDEN
from tests.objectives import objectives

RANGES = objectives(minimum=[-3.0, 0.0, 0.0], maximum=[3.0, 1.0, 1.0])


@cache
def golden():
    return json.loads((GOLDEN / "relatives.json").read_text())


def compute(case, method, **more):
    return saw.compute_advantage(
        torch.tensor(case["rewards"], dtype=torch.float64),
        case["uid"],
        torch.tensor(case["response_lengths"]),
        method=method,
        objectives=RANGES,
        **more,
    )


@pytest.mark.parametrize("method", ["corr_grpo", "corr_gdpo", "gd2po", "gd2po_snr", "tchebycheff"])
def test_advantages(method):
    """The released profile gives a group of one its own reward, as these codes do wherever they normalise."""
    released = "paper" if method == "corr_grpo" else "released"
    for case in golden()["cases"]:
        lone = np.array([case["uid"].count(uid) == 1 for uid in case["uid"]])
        found = compute(case, method, options={"profile": released}).samples
        expected = np.array(case["advantages"][method])
        if method == "tchebycheff":  # here 0 in every profile
            found, expected = found[~lone], expected[~lone]
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


def test_hvo():
    """Once divided by the standard deviation plus that code's constant, and once not, as in its script."""
    cases = [case for case in golden()["cases"] if "hvo" in case["advantages"]]
    assert len(cases) > 2
    for case in cases:
        rewards = torch.tensor(case["rewards"], dtype=torch.float64)
        batch = make_batch(rewards, case["uid"], torch.ones(len(rewards)), check_objectives(None, 3))
        for name, eps in (("hvo", 1e-4), ("hvo_unscaled", 1e9)):
            profile = PAPER.model_copy(update={"group_eps": eps})
            found = METHODS["hvo"].aggregation.combine(batch, torch.full((3,), 1 / 3).double(), profile)
            found = found * (1.0 if name == "hvo" else eps)
            np.testing.assert_allclose(found, case["advantages"][name], atol=2e-4)


def test_ctwa():
    expected, memory = golden()["ctwa"], {}
    options = {name: expected[name] for name in ("targets", "enough")}
    options |= {"ema": 1 - expected["ema_tau"], "lr": expected["lambda_lr"]}
    for number, case in enumerate(expected["cases"]):
        found = compute(golden()["cases"][case], "ctwa", options={"ctwa": options}, memory=memory)
        np.testing.assert_allclose(found.weights, expected["weights"][number], atol=1e-5)
        np.testing.assert_allclose(found.memory["covariance"], expected["covariance"][number], atol=1e-5)
        memory = found.memory
    assert found.weights.max() > 0.335


def test_lagrangian():
    expected, memory = golden()["lagrangian"], {}
    options = {"lagrangian": {"targets": expected["targets"], "lr": expected["lr"]}}
    for number, case in enumerate(expected["cases"]):
        found = compute(golden()["cases"][case], "lagrangian", options=options, memory=memory)
        memory = found.memory
        np.testing.assert_allclose(memory["multipliers"][1:], expected["multipliers"][number], atol=1e-6)
        assert memory["multipliers"][0] == 1


def test_gradnorm():
    expected, found = golden()["gradnorm"], None
    options = {"gradnorm": {name: expected[name] for name in ("alpha", "lr")}}
    for number, case in enumerate(expected["cases"]):
        gradients = torch.tensor(expected["gradients"][number], dtype=torch.float64)
        before = {} if found is None else {"memory": found.memory, "previous_weights": found.weights}
        gram = gradients @ gradients.T
        found = compute(golden()["cases"][case], "gradnorm", options=options, gram=gram, **before)
        np.testing.assert_allclose(found.weights, expected["weights"][number], atol=1e-6)


def test_mgda():
    for case in golden()["mgda"]:
        gradients = torch.tensor(case["gradients"], dtype=torch.float64)
        np.testing.assert_allclose(shortest(gradients @ gradients.T), case["weights"], atol=1e-4)


def test_conditional_rewards():
    """multireward-grpo's ``zero_fill``, then its normalised sum, which divides by a standard deviation with ddof=0."""
    for case in golden()["conditional"]:
        rewards = torch.tensor(case["rewards"], dtype=torch.float64)
        gated = [
            saw.Objective("gate", 0, 1),
            saw.Objective("gated", 0, 1, requires={"gate": 1.0}),
            saw.Objective("free", 0, 1),
        ]
        found = saw.compute_advantage(rewards, ["p"] * 8, torch.ones(8), method="mo_grpo", objectives=gated)
        np.testing.assert_allclose(found.statistics.mean, np.mean(case["gated"], axis=0), atol=1e-12)
        np.testing.assert_allclose(found.samples * np.sqrt(8 / 7), case["advantages"], atol=1e-4)
