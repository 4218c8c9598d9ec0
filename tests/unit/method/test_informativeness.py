"""SAW with other measures than CV, against values computed by hand."""

import math

import numpy as np
import pytest
import torch

import saw
from saw.method.context import Context
from saw.method.inputs import make_batch
from saw.method.options import Options
from saw.method.profiles import PAPER
from saw.method.registry import get_measure
from saw.method.statistics import objective_statistics
from tests.objectives import objectives

NAN = math.nan
# Two prompts of three; the second objective is constant in the first group.
REWARDS = [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0], [4.0, 4.0]]
GROUPS = ["a", "a", "a", "b", "b", "b"]


def measure(name, over="batch", rewards=REWARDS, maxima=(None, None)):
    ranges = objectives(minimum=[0, 0], maximum=maxima)
    batch = make_batch(torch.tensor(rewards), GROUPS[: len(rewards)], torch.ones(len(rewards)), ranges)
    context = Context(batch, objective_statistics(batch, PAPER), Options(over=over))
    return get_measure(name).compute(context).numpy()


def test_over_the_batch():
    values = np.array(REWARDS)
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
    np.testing.assert_allclose(measure("cv"), std / mean, rtol=1e-6)
    np.testing.assert_allclose(measure("normalised_variance"), (std / mean) ** 2, rtol=1e-6)
    np.testing.assert_allclose(measure("range_std", maxima=[4, 8]), std / [4, 8], rtol=1e-6)
    np.testing.assert_allclose(measure("group_spread"), [1.0, 0.5])


def test_over_each_group():
    groups = np.array(REWARDS).reshape(2, 3, 2)
    mean, std = groups.mean(axis=1), groups.std(axis=1, ddof=1)
    np.testing.assert_allclose(measure("cv", "group"), std / mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(measure("range_std", "group", maxima=[4, 8]), std / [4, 8], rtol=1e-6)
    np.testing.assert_allclose(measure("group_spread", "group"), [[1, 0], [1, 1]])


def test_entropy_by_hand():
    # deviations -1, 0, 1 in the first group: two samples have 1/2 each; -1, -1, 2 in the second: 1/4, 1/4, 1/2
    first, second = math.log(2) / math.log(3), 1.5 * math.log(2) / math.log(3)
    np.testing.assert_allclose(measure("advantage_entropy", "group")[:, 0], [first, second], rtol=1e-6)
    # the second objective is constant in the first group; -2, 0, 2 in the second
    np.testing.assert_allclose(measure("advantage_entropy", "group")[:, 1], [0.0, first], atol=1e-6)
    # over the batch: each group has unit variance, so the sizes are 1, 0, 1 and 1, 1, 2 over sqrt(3)
    sizes = np.array([1, 0, 1, 1 / math.sqrt(3), 1 / math.sqrt(3), 2 / math.sqrt(3)])
    share = sizes[sizes > 0] / sizes.sum()
    expected = -(share * np.log(share)).sum() / math.log(6)
    np.testing.assert_allclose(measure("advantage_entropy")[0], expected, rtol=1e-6)


@pytest.mark.parametrize("over", ["batch", "group"])
@pytest.mark.parametrize("name", ["cv", "normalised_variance", "range_std", "advantage_entropy", "group_spread"])
def test_an_objective_that_is_missing_everywhere_has_no_value_and_no_weight(name, over):
    rewards = [[1.0, NAN], [2.0, NAN], [3.0, NAN], [1.0, NAN], [1.0, NAN], [2.0, NAN]]
    assert np.isnan(measure(name, over, rewards, maxima=[4, 4])[..., 1]).all()
    result = saw.compute_advantage(
        torch.tensor(rewards),
        GROUPS,
        torch.ones(6, 2),
        method="saw_gdpo",
        objectives=objectives(maximum=[4, 4]),
        options={"informativeness": name, "over": over},
    )
    assert result.weights.tolist() == [1.0, 0.0]
    assert result.tokens.isfinite().all()


def test_weights_are_shares_of_the_measure():
    result = saw.compute_advantage(
        torch.tensor(REWARDS), GROUPS, torch.ones(6, 2), method="saw_grpo", options={"informativeness": "group_spread"}
    )
    assert result.weights.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_each_group_is_weighted_by_itself():
    # per group, by spread: the first group uses only the first objective, the second weights both equally
    result = saw.compute_advantage(
        torch.tensor(REWARDS),
        GROUPS,
        torch.ones(6, 2),
        method="saw_grpo",
        options={"informativeness": "group_spread", "over": "group"},
    )
    combined = np.array(
        [-1, 0, 1, -1 / 2 - 1, -1 / 2, 2 / 2 + 1]
    )  # of deviations; second group (-1-2)/2, (-1+0)/2, (2+2)/2
    combined[3:] = [-1.5, -0.5, 2.0]
    expected = combined / np.repeat([combined[:3].std(ddof=1), combined[3:].std(ddof=1)], 3)
    np.testing.assert_allclose(result.samples.numpy(), expected, atol=1e-5)
    assert result.weights.tolist() == pytest.approx([0.75, 0.25])  # the mean over the groups


def test_a_measure_that_needs_the_range_says_so():
    with pytest.raises(ValueError, match=r"'objective 0' .* 'range_std' needs a maximum"):
        saw.compute_advantage(
            torch.tensor(REWARDS), GROUPS, torch.ones(6, 2), method="saw_grpo", options={"informativeness": "range_std"}
        )
