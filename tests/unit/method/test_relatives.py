"""The methods of other papers, by hand: CorrGRPO, GD2PO, MGDA, GradNorm, CTWA, Lagrangian, Tchebycheff, HVO."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import saw
from saw.method.multi_gradient import shortest
from saw.method.options import Options
from saw.method.registry import METHODS, check_combination
from tests.methods import own_options
from tests.objectives import objectives

NAN = math.nan
REWARDS = [[0.0, 0.0], [1.0, 0.0], [2.0, 3.0], [1.0, 1.0]]
DEVIATIONS = np.array([[-1, -1], [0, -1], [1, 2], [0, 0]])
NORMALISED = DEVIATIONS / np.sqrt([2 / 3, 2.0])
GRAM = torch.tensor([[4.0, -1.0], [-1.0, 2.0]])
RANGES = objectives(minimum=[0, 0], maximum=[2, 3])
#: What each method cannot do without.
NEEDED = {
    **{name: {} for name in ("corr_grpo", "corr_gdpo", "gd2po", "gd2po_snr", "hvo", "tchebycheff")},
    "ctwa": {"options": {"ctwa": {"targets": 9.0}}},
    "mgda": {"gram": GRAM},
    "gradnorm": {"gram": GRAM},
    "lagrangian": {"options": {"lagrangian": {"targets": (None, 1.5), "lr": 0.5}}},
}


def advantage(method, rewards=REWARDS, groups=None, **more):
    groups = groups or ["p"] * len(rewards)
    more = {"objectives": RANGES, **NEEDED[method], **more}
    return saw.compute_advantage(torch.tensor(rewards), groups, torch.ones(len(rewards), 1), method=method, **more)


# ------------------------------------------------------------------ CorrGRPO


def test_corr_grpo_divides_by_the_root_of_the_correlations():
    correlation = 3 / math.sqrt(2 * 6)
    expected = DEVIATIONS.sum(axis=1) / math.sqrt(2 + 2 * correlation)
    np.testing.assert_allclose(advantage("corr_grpo").samples, expected, atol=1e-5)
    weighted = advantage("corr_grpo", objectives=objectives(priority=[3, 1])).samples  # a factor changes no correlation
    np.testing.assert_allclose(weighted, DEVIATIONS @ [3, 1] / math.sqrt(2 + 2 * correlation), atol=1e-5)


def test_corr_grpo_of_opposite_and_of_constant_objectives():
    """Contradicting objectives have correlations that sum to 0, where only the small constant is left."""
    opposite = advantage("corr_grpo", [[0.0, 3.0], [2.0, 0.0]], objectives=None).samples
    np.testing.assert_allclose(opposite, np.array([0.5, -0.5]) / math.sqrt(1e-6), rtol=1e-6)
    constant = advantage("corr_grpo", [[0.0, 1.0], [2.0, 1.0]]).samples
    np.testing.assert_allclose(constant, [-1, 1], atol=1e-5)
    assert advantage("corr_grpo", [[1.0, 1.0]] * 3).samples.tolist() == [0.0] * 3


def test_corr_gdpo_divides_by_the_correlations_of_the_batch():
    rewards, groups = [*REWARDS, [0.0, 1.0], [1.0, 0.0]], ["p"] * 4 + ["q"] * 2
    parts = np.concatenate([NORMALISED, np.array([[-1, 1], [1, -1]]) / math.sqrt(2)])
    total = np.corrcoef(parts.T).sum()
    np.testing.assert_allclose(
        advantage("corr_gdpo", rewards, groups).samples, parts.sum(axis=1) / math.sqrt(total), atol=1e-5
    )


# ------------------------------------------------------------------ GD2PO

CONFLICT = [[0.0, 3.0], [1.0, 1.0], [2.0, 2.0], [1.0, 2.0]]  # deviations -1,0,1,0 and 1,-1,0,0


def test_gd2po_drops_the_sample_on_which_the_signs_differ():
    np.testing.assert_allclose(advantage("gd2po", CONFLICT).samples, [0, -1, 1, 0], atol=1e-5)
    plain = saw.compute_advantage(torch.tensor(REWARDS), ["p"] * 4, torch.ones(4), method="gdpo").samples
    np.testing.assert_allclose(advantage("gd2po").samples, plain, atol=1e-12)  # without a conflict it is GDPO


def test_gd2po_scales_a_group_by_the_share_that_is_kept():
    rewards, groups = [*CONFLICT, [0.0, 0.0], [1.0, 1.0]], ["p"] * 4 + ["q"] * 2
    combined = np.array([-0.75, 0.75, 0.0, -math.sqrt(2), math.sqrt(2)]) / [*[math.sqrt(2 / 3)] * 2, 1, 1, 1]
    expected = combined / combined.std(ddof=1)
    np.testing.assert_allclose(advantage("gd2po", rewards, groups).samples, [0, *expected], atol=1e-5)


def test_gd2po_s_soft_filter_keeps_a_conflict_that_hardly_cancels():
    rewards = [[0.0, 1.0], [0.0, 0.0], [2.0, 0.95], [2.0, 2.05]]  # deviations 1 and -0.05 of the third: a ratio of 0.87
    hard, soft = (advantage(name, rewards).samples for name in ("gd2po", "gd2po_snr"))
    assert hard[2] == 0
    assert soft[2] > 0.4
    assert advantage("gd2po_snr", CONFLICT).samples[0] == 0  # +1 and -1 cancel out


def test_an_objective_with_priority_0_and_a_missing_reward_are_in_no_conflict():
    ignored = advantage("gd2po", CONFLICT, objectives=objectives(priority=[1, 0])).samples
    assert (ignored != 0).tolist() == [True, False, True, False]
    missing = advantage("gd2po", [[0.0, NAN], *CONFLICT[1:]]).samples
    assert missing[0] != 0


def test_gd2po_of_nothing_but_conflicts_is_0():
    assert advantage("gd2po", [[0.0, 1.0], [1.0, 0.0]]).samples.tolist() == [0.0, 0.0]


# ------------------------------------------------------------------ MGDA, GradNorm


def test_mgda_by_hand():
    weights = advantage("mgda").weights
    np.testing.assert_allclose(weights, [3 / 8, 5 / 8], rtol=1e-12)  # (|g2|^2 - g1 g2) / |g1 - g2|^2
    np.testing.assert_allclose(advantage("mgda").samples, NORMALISED @ weights.numpy(), atol=1e-5)
    shorter_alone = torch.tensor([[4.0, 3.0], [3.0, 2.5]])
    assert advantage("mgda", gram=shorter_alone).weights.tolist() == [0.0, 1.0]
    assert advantage("mgda", gram=torch.zeros(2, 2)).weights.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(shortest(torch.diag(torch.tensor([1.0, 2.0, 4.0]).double())), np.array([4, 2, 1]) / 7)


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=5))
def test_mgda_s_combination_has_a_product_with_every_gradient_that_is_at_least_its_square(vectors):
    """The condition of a shortest vector, which also says that a step along it worsens no objective."""
    gradients = torch.tensor(vectors, dtype=torch.float64)
    gram = gradients @ gradients.T
    weights = shortest(gram)
    assert weights.sum().item() == pytest.approx(1.0)
    assert (weights >= 0).all()
    along = gram @ weights
    assert (along >= weights @ along - 1e-2 * (1e-3 + gram.diagonal().max())).all()


def test_gradnorm_by_hand():
    first = advantage("gradnorm")  # means 1 and 1 of maxima 2 and 3; norms 2 and sqrt 2, both beside their mean
    moved = np.array([1 - 0.025 * 2, 1 + 0.025 * math.sqrt(2)])
    np.testing.assert_allclose(first.weights, moved / moved.sum(), rtol=1e-12)
    assert first.memory["first_distance"].tolist() == [1.0, 2.0]
    np.testing.assert_allclose(first.samples, NORMALISED @ (2 * first.weights.numpy()), atol=1e-5)
    later = [[1.5, 0.0], [1.5, 0.0], [1.5, 3.0], [1.5, 1.0]]  # the first has come half way: lags of 2/3 and 4/3
    options = {"gradnorm": {"alpha": 10.0, "lr": 0.1}}
    second = advantage("gradnorm", later, memory=first.memory, previous_weights=first.weights, options=options)
    start = 2 * first.weights.numpy()
    moved = start + np.array([-0.1 * 2, 0.1 * math.sqrt(2)])
    np.testing.assert_allclose(second.weights, moved / moved.sum(), rtol=1e-12)
    assert second.memory["first_distance"].tolist() == [1.0, 2.0]


def test_gradnorm_s_weights_stay_at_least_0():
    for options in ({"gradnorm": {"lr": 1e3}}, {"gradnorm": {"lr": 1e9, "alpha": 0.0}}):
        weights = advantage("gradnorm", options=options).weights
        assert weights.tolist() == [0.0, 1.0]
    at_the_top = advantage("gradnorm", [[2.0, 0.0], [2.0, 3.0]])
    assert at_the_top.weights.isfinite().all()


# ------------------------------------------------------------------ CTWA, Lagrangian


def test_ctwa_by_hand():
    combined = DEVIATIONS.sum(axis=1) / 2
    advantages = combined / combined.std(ddof=1)
    covariance = DEVIATIONS.T @ advantages / 4
    options = {"ctwa": {"targets": 0.6, "lr": 2.0, "ema": 0.75}}
    first = advantage("ctwa", options=options)
    assert first.weights.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(first.samples, advantages, atol=1e-5)
    np.testing.assert_allclose(first.memory["covariance"], covariance, atol=1e-5)
    grown = np.exp(2.0 * np.maximum(0.6 - covariance, 0))
    np.testing.assert_allclose(first.memory["next_weights"], grown / grown.sum(), atol=1e-5)
    assert first.memory["next_weights"][0] > 0.505
    flat = [[1.0, 1.0]] * 4  # no covariance at all: only the average is left
    second = advantage("ctwa", flat, options=options, memory=first.memory)
    np.testing.assert_allclose(second.weights, first.memory["next_weights"])
    np.testing.assert_allclose(second.memory["covariance"], 0.75 * covariance, atol=1e-5)


def test_ctwa_leaves_alone_what_is_good_enough():
    options = {"ctwa": {"targets": (9.0, 9.0), "enough": (1.0, None)}}
    after = advantage("ctwa", options=options).memory["next_weights"]
    before = advantage("ctwa", options={"ctwa": {"targets": (9.0, 9.0)}}).memory["next_weights"]
    assert after[1] > 0.53
    assert before[1] < 0.51


def test_lagrangian_by_hand():
    first = advantage("lagrangian")  # the second has mean 1 and target 1.5
    assert first.memory["multipliers"].tolist() == [1.0, 0.25]
    assert first.weights.tolist() == [0.8, 0.2]
    np.testing.assert_allclose(first.samples, NORMALISED @ [1.6, 0.4], atol=1e-5)
    second = advantage("lagrangian", memory=first.memory)
    assert second.memory["multipliers"].tolist() == [1.0, 0.5]
    above = advantage("lagrangian", [[0.0, 3.0], [1.0, 3.0]], memory=first.memory)
    assert above.memory["multipliers"].tolist() == [1.0, 0.0]
    unknown = advantage("lagrangian", [[0.0, NAN], [1.0, NAN]], memory=first.memory)
    assert unknown.memory["multipliers"].tolist() == [1.0, 0.25]


@pytest.mark.parametrize("targets", [(1.0, 1.0), ()])
def test_a_lagrangian_without_an_objective_to_maximise_is_refused(targets):
    with pytest.raises(ValidationError, match="at least one null"):
        Options(lagrangian={"targets": targets})


# ------------------------------------------------------------------ Tchebycheff, HVO


def test_tchebycheff_by_hand():
    centred = np.array([-0.5, -0.5, 1.0, 0.0])  # of -1.5, -1.5, 0 and -1: half the larger distance to 2 and 3
    np.testing.assert_allclose(advantage("tchebycheff").samples, centred / math.sqrt(0.5), atol=1e-5)
    first_only = advantage("tchebycheff", objectives=objectives(maximum=[2, 3], priority=[1, 0])).samples
    np.testing.assert_allclose(first_only, NORMALISED[:, 0], atol=1e-5)
    missing = advantage("tchebycheff", [[0.0, NAN], *REWARDS[1:]]).samples  # the worst of the others: -1
    np.testing.assert_allclose(missing, (c := np.array([-1.0, -1.5, 0, -1]) + 0.875) / c.std(ddof=1), atol=1e-5)
    with pytest.raises(ValueError, match="range of 'objective 0' is from None to None; 'tchebycheff' needs a maximum"):
        advantage("tchebycheff", objectives=None)


def test_hvo_by_hand():
    volume = np.array([0.1 * 0.1, 1.1 * 0.1, 2.1 * 3.1, 1.1 * 1.1])
    expected = (volume - volume.mean()) / volume.std(ddof=1)
    np.testing.assert_allclose(advantage("hvo").samples, expected, atol=1e-5)
    volume[0] = 0.1 * (4 / 3 + 0.1)  # a missing reward counts as the mean of its group
    expected = (volume - volume.mean()) / volume.std(ddof=1)
    np.testing.assert_allclose(advantage("hvo", [[0.0, NAN], *REWARDS[1:]]).samples, expected, atol=1e-5)


def test_hvo_s_minimum_is_the_batch_s():
    rewards, groups = [*REWARDS, [-1.0, 5.0], [0.0, 5.0]], ["p"] * 4 + ["q"] * 2
    volume = np.array([1.1 * 0.1, 2.1 * 0.1, 3.1 * 3.1, 2.1 * 1.1])
    expected = (volume - volume.mean()) / volume.std(ddof=1)
    np.testing.assert_allclose(advantage("hvo", rewards, groups, objectives=None).samples[:4], expected, atol=1e-5)


def test_priorities_that_would_have_no_effect_are_refused():
    with pytest.raises(ValueError, match=r"the priorities are \[1, 2\], and hvo multiplies the rewards"):
        advantage("hvo", objectives=objectives(priority=[1, 2]))


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("method", NEEDED)
@pytest.mark.parametrize("rewards", [[[1.0, 1.0]] * 4, [[0.0, NAN], [NAN, 1.0], [NAN, NAN], [1.0, 2.0]], [[1.0, 2.0]]])
def test_flat_missing_and_lone_rewards_give_finite_advantages(method, rewards):
    found = advantage(method, rewards)
    assert found.tokens.isfinite().all()
    for sample, row in zip(found.samples.tolist(), rewards, strict=True):
        if all(math.isnan(value) for value in row):
            assert sample == 0
    if len(set(map(str, rewards))) == 1:
        assert found.samples.abs().max() == 0


@pytest.mark.parametrize("method", NEEDED)
def test_a_penalty_is_refused_unless_the_rewards_are_summed(method):
    if METHODS[method].aggregation.takes_penalty:
        assert method == "ctwa"
        assert advantage(method, penalty=torch.tensor([1.0, 0, 0, 0])).samples[0] < advantage(method).samples[0]
    else:
        with pytest.raises(ValueError, match="penalty"):
            advantage(method, penalty=torch.zeros(4))


@pytest.mark.parametrize("method", [name for name in NEEDED if METHODS[name].weighting.remembers])
def test_what_a_method_remembers_is_plain_numbers_that_it_takes_back(method):
    """What a host writes into a checkpoint: lists. A resumed training goes on as if it had not stopped."""
    first = advantage(method)
    saved = {name: values.tolist() for name, values in first.memory.items()}
    weights = first.weights.tolist()
    again = advantage(method, memory=saved, previous_weights=weights)
    kept = advantage(method, memory=first.memory, previous_weights=first.weights)
    assert torch.equal(again.samples, kept.samples)
    forgotten = advantage(method)
    assert any(not torch.equal(again.memory[name], forgotten.memory[name]) for name in saved) or not torch.equal(
        again.weights, forgotten.weights
    )
    for wrong in ({"other": [1.0, 1.0]}, {**saved, "other": [1.0, 1.0]}, {name: [1.0] for name in saved}):
        with pytest.raises(ValueError, match="memory for"):
            advantage(method, memory=wrong)
    with pytest.raises(ValueError, match="expected 2 finite numbers"):
        advantage(method, memory={name: [NAN, 1.0] for name in saved})
    with pytest.raises(ValueError, match=r"memory for 'corr_grpo' has .*; expected nothing"):
        advantage("corr_grpo", memory=saved)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lagrangian", {}, r"options\.lagrangian\.targets is not set; lagrangian needs one value per objective"),
        ("lagrangian", {"lagrangian": {"targets": (None, 1.0, 1.0)}}, r"lagrangian needs 2 values"),
        ("ctwa", {"ctwa": {"targets": (1.0,)}}, r"options\.ctwa\.targets is \(1\.0,\); ctwa needs 2 values"),
        ("ctwa", {"ctwa": {"enough": (1.0,)}}, r"options\.ctwa\.enough is \(1\.0,\); ctwa needs 2 values"),
        ("ctwa", {"gradnorm": {"lr": 1.0}}, r"options\.gradnorm\.lr is 1\.0, and ctwa does not read it"),
        ("mgda", {"ema": 0.5}, r"options\.ema is 0\.5, and mgda does not read it"),
        ("gd2po", {"floor": 0.1}, r"options\.floor is 0\.1, and gd2po does not read it"),
        ("gradnorm", {"gradient": {"clip": 1.0}}, r"options\.gradient\.clip is 1\.0, and gradnorm does not read it"),
    ],
)
def test_options_that_have_no_effect_or_no_value_for_an_objective_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        check_combination(method, Options(**options), 2)


@pytest.mark.parametrize(
    ("section", "wrong"),
    [("gradnorm", {"lr": 0.0}), ("ctwa", {"ema": 1.0}), ("ctwa", {"lr": -1.0}), ("lagrangian", {"lr": 0.0})],
)
def test_options_out_of_range_are_refused(section, wrong):
    with pytest.raises(ValidationError, match=f"{section}.{next(iter(wrong))}"):
        Options(**{section: wrong})


ODD = {
    "missing rewards, and samples without any": lambda r: torch.where(torch.arange(8)[:, None] < 2, torch.nan, r),
    "an objective that is missing in half of the samples": lambda r: r.masked_fill(
        (torch.arange(8)[:, None] % 2 == 0) & (torch.arange(r.shape[1]) == 0), torch.nan
    ),
    "constant": torch.ones_like,
    "zeros": torch.zeros_like,
    "integers": lambda r: (5 * r).long(),
    "bool": lambda r: r > 0.5,
    "bfloat16": lambda r: r.bfloat16(),
    "huge": lambda r: r.double() * 1e30,
    "tiny": lambda r: r.double() * 1e-30,
}


@pytest.mark.parametrize(("size", "groups"), [(1, [0] * 4 + [1] * 4), (3, [0] * 4 + [1] * 4), (2, list(range(8)))])
@pytest.mark.parametrize("method", saw.METHODS)
def test_every_method_is_finite_for_odd_rewards_and_again_with_what_it_remembers(method, size, groups):
    """Kind: rewards that the equations do not have in mind. The second step gets the first one's weights and memory."""
    rewards = torch.rand(8, size, generator=torch.Generator().manual_seed(0))
    given = {
        "responses": torch.ones(8, 3),
        "method": method,
        "objectives": [saw.Objective(f"o{k}", 0.0, 1e31) for k in range(size)],
        "options": own_options(method, size),
        "gram": torch.eye(size, dtype=torch.float64) + 0.5,
    }
    for kind, change in ODD.items():
        first = saw.compute_advantage(change(rewards), groups, **given)
        again = saw.compute_advantage(
            change(rewards), groups, step=1, previous_weights=first.weights, memory=first.memory, **given
        )
        for found in (first, again):
            assert found.tokens.isfinite().all(), kind
            assert abs(found.weights.sum() - 1) < 1e-6, kind
            assert all(value.isfinite().all() for value in found.memory.values()), kind
