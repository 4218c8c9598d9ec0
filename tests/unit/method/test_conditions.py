"""Conditional rewards: an objective counts only where others reach a threshold."""

import math
import re

import numpy as np
import pytest
import torch

import saw
from saw.method.conditions import condition
from saw.method.registry import METHODS
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from tests.configs import compose
from tests.methods import own_options

NAN = math.nan
REWARDS = torch.tensor([[1.0, 0.2], [0.0, 0.9], [1.0, 0.6], [0.0, 0.4], [1.0, 0.4]])
GATE = saw.Objective("right", 0.0, 1.0)


def gated(otherwise="minimum", **more):
    fields = {"minimum": -1.0, "maximum": 1.0, "requires": {"right": 1.0}, **more}
    return [GATE, saw.Objective("short", otherwise=otherwise, **fields)]


def advantage(rewards=REWARDS, chosen=None, method="mo_grpo", **more):
    return saw.compute_advantage(
        rewards, ["p"] * len(rewards), torch.ones(len(rewards)), method=method, objectives=chosen, **more
    )


def test_the_others_count_as_the_minimum_or_are_missing():
    assert condition(REWARDS, gated())[:, 1].tolist() == pytest.approx([0.2, -1, 0.6, -1, 0.4])
    missing = condition(REWARDS, gated("missing"))[:, 1].tolist()
    assert [math.isnan(value) for value in missing] == [False, True, False, True, False]
    assert condition(REWARDS, [GATE, saw.Objective("short")]) is REWARDS


def test_a_threshold_that_is_just_reached_counts_in_the_rewards_precision():
    """0.9 in float32 is below 0.9 in float64."""
    chosen = [saw.Objective("a", 0.0, 1.0), saw.Objective("b", 0.0, 1.0, requires={"a": 0.9})]
    assert condition(torch.tensor([[0.9, 0.5]]), chosen)[0, 1] == 0.5


@pytest.mark.parametrize("otherwise", ["minimum", "missing"])
def test_a_missing_condition_makes_the_objective_missing_and_a_missing_reward_stays_so(otherwise):
    rewards = torch.tensor([[NAN, 0.5], [1.0, NAN], [0.0, NAN], [1.0, 0.25]])
    found = condition(rewards, gated(otherwise))[:, 1]
    assert found.isnan().tolist() == [True, True, True, False]


def test_several_conditions_and_chains_are_of_the_rewards_as_given():
    chosen = [
        saw.Objective("c", 0.0, 1.0, requires={"a": 0.5, "b": 0.5}),
        saw.Objective("b", 0.0, 1.0, requires={"a": 1.0}),
        saw.Objective("a", 0.0, 1.0),
    ]
    rewards = torch.tensor([[1.0, 1.0, 0.5], [1.0, 0.25, 1.0], [1.0, 1.0, 0.0]])
    assert condition(rewards, chosen).tolist() == [[1.0, 0.0, 0.5], [0.0, 0.25, 1.0], [0.0, 0.0, 0.0]]


def test_integers_can_be_missing_too():
    found = condition(torch.tensor([[1, 1], [0, 1]]), gated("missing"))
    assert found[1].isnan().tolist() == [False, True]


def test_missing_with_mo_grpo_is_papo():
    """The second is normalised among the right samples only, and adds nothing to the others."""
    right, short = REWARDS.T.double().numpy()
    outcome = (right - right.mean()) / right.std(ddof=1)
    own = short[right == 1]
    process = np.zeros(5)
    process[right == 1] = (own - own.mean()) / own.std(ddof=1)
    np.testing.assert_allclose(advantage(chosen=gated("missing")).samples, outcome + process, atol=1e-5)


def test_statistics_are_of_the_rewards_that_count():
    found = advantage(chosen=gated("missing")).statistics
    assert found.missing.tolist() == [0, 2]
    assert found.mean[1].item() == pytest.approx(0.4)
    assert advantage(chosen=gated()).statistics.mean[1].item() == pytest.approx((0.2 - 1 + 0.6 - 1 + 0.4) / 5)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("otherwise", ["minimum", "missing"])
def test_every_method_sees_the_rewards_that_count(method, otherwise):
    options = own_options(method)
    plain = [GATE, saw.Objective("short", -1.0, 1.0)]
    more = {"method": method, "gram": torch.eye(2), "options": options}
    by_hand = advantage(condition(REWARDS, gated(otherwise)), plain, **more)
    assert torch.equal(advantage(chosen=gated(otherwise), **more).samples, by_hand.samples)


def test_the_objectives_own_advantages_are_conditional():
    whole = saw.objective_advantages(REWARDS, ["p"] * 5, objectives=gated("missing"))
    by_hand = saw.objective_advantages(condition(REWARDS, gated("missing")), ["p"] * 5)
    assert torch.equal(whole, by_hand)
    assert not torch.equal(whole, saw.objective_advantages(REWARDS, ["p"] * 5))


def test_a_reward_below_its_minimum_is_found_where_the_objective_does_not_count():
    with pytest.raises(ValueError, match=r"the reward of 'short' is -2 for sample 0, below its minimum -1"):
        advantage(torch.tensor([[0.0, -2.0], [1.0, 0.0]]), gated())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"requires": {"short": 1.0}}, "'short' requires {'short': 1.0}; expected other objectives"),
        ({"requires": {}}, "'short' requires {}; expected other objectives"),
        ({"requires": "right"}, "'short' requires 'right'; expected other objectives"),
        ({"requires": {"right": NAN}}, "'short' requires 'right' to reach nan; expected a finite number"),
        ({"requires": {"right": "1"}}, "'short' requires 'right' to reach '1'; expected a finite number"),
        ({"otherwise": "zero"}, "otherwise of 'short' is 'zero'; expected 'minimum' or 'missing'"),
        ({"requires": None, "otherwise": "missing"}, "otherwise of 'short' is 'missing', but it requires no other"),
        ({"minimum": None}, "its minimum is not set: set it, or otherwise='missing'"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gated(**fields)


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        (
            {"rihgt": 1.0},
            "'short' requires 'rihgt' to reach 1, and there is no such objective; the objectives are right",
        ),
        ({"right": 2.0}, "'short' requires 'right' to reach 2, above its maximum 1: 'short' would never count"),
        ({"right": 0.0}, "to reach 0, which its minimum 0 does: the condition would always hold"),
    ],
)
def test_conditions_that_cannot_be_met_or_missed_are_refused(requires, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        advantage(chosen=gated(requires=requires))
    config = compose(
        "experiment=quickstart",
        f"+saw.objectives.correctness.requires={requires}".replace("right", "format").replace("'", ""),
    )
    with pytest.raises(
        ConfigError, match=re.escape(message.replace("right", "format").replace("short", "correctness"))
    ):
        check_config(config)


def section(**short):
    objectives = {"right": {"minimum": 0, "maximum": 1}, "short": {"minimum": 0, **short}}
    return Settings.model_validate({"method": "saw_gdpo", "objectives": objectives})


def test_the_configuration_s_conditions_are_the_library_s():
    found = section(requires={"right": 1}, otherwise="missing")
    assert found.conditions == {"right": {}, "short": {"right": 1.0}}
    assert found.objectives[1].otherwise == "missing"


@pytest.mark.parametrize(
    ("short", "message"),
    [
        ({"requires": {"short": 1}}, "expected other objectives than 'short' itself"),
        ({"otherwise": "missing"}, "otherwise is 'missing', but requires is empty"),
        ({"otherwise": "zero", "requires": {"right": 1}}, "'minimum' or 'missing'"),
        ({"requires": {"right": 1}, "minimum": "running"}, "the minimum is 'running', which moves"),
        ({"requires": "right"}, "valid dictionary"),
    ],
)
def test_the_configuration_s_conditions_that_make_no_sense_are_refused(short, message):
    with pytest.raises(ValueError, match=message):
        section(**short)
