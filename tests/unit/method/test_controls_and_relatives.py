"""Random and static weights, MO-GRPO, DVAO, and the options that smooth the weights: by hand."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import saw
from saw.method import registry
from saw.method.options import Options
from saw.method.registry import METHODS, check_combination
from saw.method.smoothing import smooth
from saw.method.weighting import clip_norms
from tests.objectives import objectives

REWARDS = [[0.0, 0.0], [1.0, 0.0], [2.0, 3.0], [1.0, 1.0]]  # deviations -1,0,1,0 and -1,-1,2,0
STD = np.sqrt([2 / 3, 2.0])


def advantage(method, rewards=REWARDS, groups=None, **more):
    rewards = torch.tensor(rewards)
    return saw.compute_advantage(
        rewards, groups or ["p"] * len(rewards), torch.ones(len(rewards), 2), method=method, **more
    )


NORMALISED = np.array([[-1, -1], [0, -1], [1, 2], [0, 0]]) / STD


def test_mo_grpo_is_gdpo_without_whitening():
    np.testing.assert_allclose(advantage("mo_grpo").samples, NORMALISED.sum(axis=1), atol=1e-5)
    weighted = advantage("mo_grpo", objectives=objectives(priority=[1, 2])).samples
    np.testing.assert_allclose(weighted, NORMALISED @ [1, 2], atol=1e-5)


def test_dvao_weighs_the_normalised_advantages_by_the_spread_in_the_group():
    result = advantage("dvao")
    weights = STD / STD.sum()
    np.testing.assert_allclose(result.weights, weights, atol=1e-6)
    np.testing.assert_allclose(result.samples, NORMALISED @ weights, atol=1e-5)


def test_dvao_s_priorities_are_part_of_its_weights():
    prior = np.array([3.0, 1.0])
    weights = prior * STD / (prior * STD).sum()
    for scale in (1.0, 0.01):  # only the ratio of the priorities counts
        result = advantage("dvao", objectives=objectives(priority=(scale * prior).tolist()))
        np.testing.assert_allclose(result.samples, NORMALISED @ weights, atol=1e-5)


def needs_only_rewards(name):
    return not METHODS[name].needs(Options()) - {"minima"} and METHODS[name].aggregation.takes_weights


@pytest.mark.parametrize("method", [name for name in METHODS if needs_only_rewards(name)])
@pytest.mark.parametrize("priority", [[0.1, 0.1], [5.0, 0.2], [0.0, 0.0]])
def test_the_weights_of_a_step_can_be_given_to_the_next_whatever_the_priorities(method, priority):
    chosen = objectives(priority=priority)
    first = advantage(method, objectives=chosen)
    assert first.weights.sum().item() == pytest.approx(1.0)
    again = advantage(method, objectives=chosen, previous_weights=first.weights, memory=first.memory)
    assert again.samples.isfinite().all()


def test_dvao_has_weights_for_each_group():
    rewards = [*REWARDS, [0.0, 0.0], [1.0, 0.0]]  # in the second group the second objective is flat
    result = advantage("dvao", rewards, groups=["p"] * 4 + ["q"] * 2)
    np.testing.assert_allclose(result.samples[4:], np.array([-1, 1]) / math.sqrt(2), atol=1e-5)
    np.testing.assert_allclose(result.samples[:4], NORMALISED @ (STD / STD.sum()), atol=1e-5)


def test_dvao_of_a_flat_group_is_nothing():
    assert advantage("dvao", [[1.0, 2.0]] * 3).samples.tolist() == [0.0] * 3


@pytest.mark.parametrize("base", ["grpo", "gdpo"])
def test_static_weights(base):
    result = advantage(f"static_{base}", options={"static_weights": (2, 6)})
    assert result.weights.tolist() == [0.25, 0.75]
    # the same as equal weights with priorities in this ratio
    other = advantage(base, objectives=objectives(priority=[0.5, 1.5]))
    torch.testing.assert_close(result.samples, other.samples, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["grpo", "gdpo"])
def test_random_weights_are_drawn_from_seed_and_step(base):
    def weights(seed, step):
        return advantage(f"random_{base}", options={"seed": seed}, step=step).weights.tolist()

    assert weights(1, 5) == weights(1, 5)
    assert weights(1, 5) != weights(1, 6)
    assert weights(1, 5) != weights(2, 5)
    assert sum(weights(1, 5)) == pytest.approx(1.0)
    drawn = np.array([weights(0, step) for step in range(600)])
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.05)
    assert drawn[:, 0].std() == pytest.approx(math.sqrt(1 / 12), abs=0.03)  # two objectives: uniform


W = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
BEFORE = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)


def steadied(previous=BEFORE, proposed=W, **options):
    return smooth(proposed, previous, Options(**options)).tolist()


def test_steadying_by_hand():
    assert steadied() == W.tolist()
    assert steadied(ema=0.75) == pytest.approx([0.4, 0.2625, 0.3375])
    assert steadied(None, ema=0.75) == W.tolist()
    assert steadied(floor=0.2) == pytest.approx([0.2, 0.2 + 0.4 * 0.1 / 0.5, 0.2 + 0.4 * 0.4 / 0.5])
    assert steadied(max_change=0.1) == pytest.approx([0.4, 0.25 + 0.0125, 0.25 + 0.0875])
    assert steadied(max_change=0.9) == pytest.approx(W.tolist())
    assert steadied(log_only=True) == pytest.approx([1 / 3] * 3)


@given(
    proposed=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    previous=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    ema=st.floats(0, 0.99),
    floor=st.floats(0, 1 / 3),
    limit=st.floats(0.01, 1) | st.none(),
)
def test_steadied_weights_keep_sum_floor_and_limit(proposed, previous, ema, floor, limit):
    def normal(values):
        values = torch.tensor(values, dtype=torch.float64) + 1e-6
        return values / values.sum()

    options = Options(ema=ema, floor=floor, max_change=limit)
    before = smooth(normal(previous), None, options)
    weights = smooth(normal(proposed), before, options)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights.min().item() >= floor - 1e-9
    if limit is not None:
        assert (weights - before).abs().max().item() <= limit + 1e-9


def test_the_last_step_s_weights_are_handed_in():
    plain = advantage("saw_grpo")
    result = advantage("saw_grpo", options={"ema": 0.5}, previous_weights=[1.0, 0.0])
    torch.testing.assert_close(result.proposed, plain.weights)
    torch.testing.assert_close(result.weights, 0.5 * plain.weights + torch.tensor([0.5, 0.0]).double())
    logged = advantage("saw_grpo", options={"log_only": True})
    assert logged.weights.tolist() == [0.5, 0.5]
    torch.testing.assert_close(logged.proposed, plain.weights)
    torch.testing.assert_close(logged.samples, advantage("grpo").samples)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("grpo", {"informativeness": "range_std"}, "options.informativeness is 'range_std', and grpo does not read"),
        ("dvao", {"over": "group"}, "options.over is 'group', and dvao does not read it"),
        ("static_grpo", {}, "options.static_weights is None; static_grpo needs 2"),
        ("static_gdpo", {"static_weights": (1.0,)}, "static_gdpo needs 2, one per objective"),
        ("static_gdpo", {"static_weights": (0.0, 0.0)}, "expected at least one above 0"),
        (
            "saw_grpo",
            {"static_weights": (1.0, 1.0)},
            "options.static_weights is (1.0, 1.0), and saw_grpo does not read it",
        ),
        ("gdpo", {"ema": 0.5}, "options.ema is 0.5, and gdpo does not read it"),
        (
            "static_grpo",
            {"static_weights": (1.0, 2.0), "floor": 0.1},
            "options.floor is 0.1, and static_grpo does not read it",
        ),
        ("saw_gdpo", {"over": "group", "floor": 0.1}, "weights per group"),
        ("dvao", {"max_change": 0.1}, "options.max_change is 0.1, and dvao does not read it"),
        ("saw_gdpo", {"floor": 0.6}, "options.floor is 0.6; expected at most 1/2"),
        ("saw_gdpo", {"log_only": True, "ema": 0.5}, "options.ema is 0.5, and log_only uses equal weights"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(method, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_combination(method, Options(**options), objectives=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        advantage(method, options=options)


@pytest.mark.parametrize("wrong", [{"ema": 1.0}, {"floor": -0.1}, {"max_change": 0.0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Options(**wrong)


GRAM = torch.tensor([[4.0, -1.0], [-1.0, 2.0]])  # influence 3 and 1


def test_gradient_weights_climb_by_influence():
    options = {"gradient": {"lr": 1e-6}}  # lr / mu = 0.1
    first = advantage("gradient_grpo", gram=GRAM, options=options)
    expected = np.exp([0.3, 0.1]) / np.exp([0.3, 0.1]).sum()
    np.testing.assert_allclose(first.weights, expected, rtol=1e-12)
    second = advantage("gradient_gdpo", gram=GRAM, options=options, previous_weights=first.weights)
    np.testing.assert_allclose(second.weights, np.exp([0.6, 0.2]) / np.exp([0.6, 0.2]).sum(), rtol=1e-12)


def test_gradient_weights_stand_still_while_influence_accumulates():
    options = {"gradient": {"lr": 1e-6, "accumulate": 3}}
    for step in (1, 2, 4):
        assert advantage("gradient_grpo", gram=GRAM, options=options, step=step).weights.tolist() == [0.5, 0.5]
    assert advantage("gradient_grpo", gram=GRAM, options=options, step=3).weights[0] > 0.54


def test_gradient_weights_survive_any_influence():
    result = advantage("gradient_grpo", gram=GRAM * 1e6, options={"gradient": {"lr": 1.0}})
    assert result.weights.tolist() == [1.0, 0.0]
    again = advantage("gradient_grpo", gram=GRAM, options={"gradient": {"lr": 1.0}}, previous_weights=result.weights)
    assert again.weights.tolist() == [1.0, 0.0]


def test_clipped_gradients_by_hand():
    """Norms 2 and sqrt 2, product -1: clipped to 1, the product is the cosine; below the limit nothing changes."""
    cosine = -1 / math.sqrt(8)
    np.testing.assert_allclose(clip_norms(GRAM, 1.0), [[1, cosine], [cosine, 1]], rtol=1e-6)
    np.testing.assert_allclose(clip_norms(GRAM, 1.5), [[2.25, -0.75], [-0.75, 2]], rtol=1e-6)  # the first alone
    assert clip_norms(GRAM, 2.0).tolist() == clip_norms(GRAM, None).tolist() == GRAM.tolist()
    assert clip_norms(torch.zeros(2, 2), 1.0).tolist() == [[0, 0], [0, 0]]
    options = {"gradient": {"lr": 1e-6, "clip": 1.5}}
    weights = advantage("gradient_grpo", gram=GRAM, options=options).weights
    np.testing.assert_allclose(weights, np.exp([0.15, 0.125]) / np.exp([0.15, 0.125]).sum(), rtol=1e-6)


def test_two_objectives_that_are_both_clipped_are_weighed_alike():
    """Influences differ only by the squared norms. If both are clipped, weights stay equal: gradient_grpo is grpo."""
    options = {"gradient": {"lr": 1e-3, "clip": 1.0}, "profile": "released"}
    found = advantage("gradient_grpo", gram=GRAM, options=options)
    np.testing.assert_allclose(found.weights, [0.5, 0.5], atol=1e-5)
    plain = advantage("grpo", options={"profile": "released"})
    np.testing.assert_allclose(found.samples, plain.samples, atol=1e-4)
    free = advantage("gradient_grpo", gram=GRAM, options={"gradient": {"lr": 1e-3}})
    assert free.weights[0].item() > 0.99


@given(
    vectors=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=4),
    limit=st.floats(1e-3, 1e3),
)
def test_clipping_the_gram_matrix_is_clipping_the_gradients(vectors, limit):
    gradients = torch.tensor(vectors, dtype=torch.float64)
    norms = gradients.norm(dim=1, keepdim=True)
    clipped = torch.where(norms > limit, gradients * (limit / norms), gradients)
    found = clip_norms(gradients @ gradients.T, limit)
    torch.testing.assert_close(found, clipped @ clipped.T, atol=1e-9 * limit**2, rtol=1e-9)
    torch.testing.assert_close(clip_norms(found, limit), found)  # each step's is clipped before averaging


def test_gradient_norm_as_informativeness():
    result = advantage("saw_gdpo", gram=GRAM, options={"informativeness": "gradient_norm"})
    np.testing.assert_allclose(result.weights, np.array([2, math.sqrt(2)]) / (2 + math.sqrt(2)), rtol=1e-12)


def test_each_objective_s_own_advantages():
    found = saw.objective_advantages(torch.tensor([*REWARDS, [9.0, math.nan], [8.0, 1.0]]), ["p"] * 4 + ["q"] * 2)
    np.testing.assert_allclose(found[:4], NORMALISED, atol=1e-5)
    np.testing.assert_allclose(found[4:], [[math.sqrt(0.5), 0], [-math.sqrt(0.5), 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("gram", "options", "message"),
    [
        (None, {"gradient": {"lr": 1.0}}, "gram is None"),
        (torch.eye(3), {"gradient": {"lr": 1.0}}, r"expected finite numbers of shape \(2, 2\)"),
        (GRAM * math.nan, {"gradient": {"lr": 1.0}}, "finite"),
        (GRAM, {}, r"options\.gradient\.lr is not set"),
        (GRAM, {"gradient": {"lr": 1.0}, "log_only": True}, "gradient_grpo does not read it"),
    ],
)
def test_gradients_that_are_not_there_are_named(gram, options, message):
    with pytest.raises(ValueError, match=message):
        advantage("gradient_grpo", gram=gram, options=options)


def test_the_reading_s_gradient_options_go_with_every_method():
    """A reading sets them once for all methods; any other option that a method would ignore is still refused."""
    released = {"profile": "released", "gradient": {"clip": 1.0, "reduction": "sum"}}
    for method in METHODS:
        own = {"static_weights": (1.0, 2.0)} if method.startswith("static") else {}
        own |= {"lagrangian": {"targets": (None, 1.0)}} if method == "lagrangian" else {}
        check_combination(method, Options(**released, **own), 2)
    measured = advantage("saw_gdpo", gram=GRAM, options={**released, "informativeness": "gradient_norm"})
    assert measured.weights[0].item() == pytest.approx(2 / (2 + math.sqrt(2)))  # the norms, not the clipped ones
    for options in (
        {"gradient": {"clip": 1.0}},
        {"gradient": {"reduction": "sum"}},
        {"profile": "released", "gradient": {"clip": 0.5}},
        {"gradient": {"clip": 1.0}, "informativeness": "gradient_norm"},
    ):
        with pytest.raises(ValueError, match=r"options\.gradient\.(clip|reduction) is .* does not read it"):
            check_combination("saw_gdpo", Options(**options), 2)
    check_combination("saw_gdpo", Options(informativeness="gradient_norm", gradient={"reduction": "sum"}), 2)


def test_an_unknown_measure_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"options\.informativeness is 'size'; allowed are cv, "):
        advantage("saw_gdpo", options={"informativeness": "size"})


def test_a_weighting_and_a_measure_of_one_s_own_need_only_their_declaration(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))
    monkeypatch.setattr(registry, "MEASURES", dict(registry.MEASURES))

    @saw.measure("largest", needs=["maxima"])
    def largest(context):
        return context.statistics.max / context.batch.maxima

    @saw.weighting("winner_", reads=["floor"])
    def winner(context):
        return (context.statistics.mean == context.statistics.mean.max()).double()

    ranges = [saw.Objective("a", 0.0, 2.0), saw.Objective("b", 0.0, 6.0)]
    measured = advantage("saw_gdpo", objectives=ranges, options={"informativeness": "largest"})
    np.testing.assert_allclose(measured.weights, [2 / 3, 1 / 3])
    with pytest.raises(ValueError, match=r"range of 'objective 0'"):
        advantage("saw_gdpo", options={"informativeness": "largest"})
    flatter = [[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]]  # means 1 and 1/3
    assert advantage("winner_grpo", flatter).weights.tolist() == [1.0, 0.0]
    assert advantage("winner_gdpo", flatter, options={"floor": 0.1}).weights.tolist() == pytest.approx([0.9, 0.1])
    with pytest.raises(ValueError, match=r"options\.ema is 0\.5, and winner_gdpo does not read it; it reads floor"):
        advantage("winner_gdpo", options={"ema": 0.5})
    with pytest.raises(ValueError, match="'winner_grpo' is already registered"):
        saw.weighting("winner_")(winner)


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"clip": -1.0}, {"clip": math.inf}, {"reduction": "total"}])
def test_gradient_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Options(gradient=wrong)


def test_gradient_options_without_gradients_are_refused():
    with pytest.raises(ValueError, match=r"options\.gradient\.accumulate is 2, and saw_grpo does not read it"):
        check_combination("saw_grpo", Options(gradient={"accumulate": 2}), 2)
    with pytest.raises(ValueError, match=r"options\.over is 'group', and saw_grpo does not read it"):
        check_combination("saw_grpo", Options(informativeness="gradient_norm", over="group"), 2)
    check_combination("saw_grpo", Options(informativeness="gradient_norm", gradient={"layers": [1]}), 2)


def test_weights_that_are_handed_in_keep_their_digits():
    limited = advantage("saw_grpo", options={"max_change": 0.1}, previous_weights=[0.775, 0.225])
    assert abs(limited.weights[0].item() - 0.775) == pytest.approx(0.1, abs=1e-15)  # a float32 in between costs 1e-8
    static = advantage("static_grpo", options={"static_weights": [0.1, 0.9]})
    assert static.weights[0].item() == pytest.approx(0.1, abs=1e-15)
