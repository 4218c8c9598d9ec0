"""Properties that hold for any rewards."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import saw
from tests.objectives import objectives

METHODS = [
    *("grpo", "gdpo", "saw_grpo", "saw_gdpo", "mo_grpo", "dvao", "corr_grpo", "corr_gdpo", "gd2po", "gd2po_snr"),
    *("hvo", "ctwa"),
]
MEASURES = ["cv", "normalised_variance", "range_std", "advantage_entropy", "group_spread"]


@st.composite
def batches(draw, missing=True):
    n = draw(st.integers(1, 12))
    k = draw(st.integers(1, 4))
    value = st.integers(0, 40).map(lambda v: v / 8)
    if missing:
        value = st.one_of(value, st.just(math.nan))
    rows = draw(st.lists(st.lists(value, min_size=k, max_size=k), min_size=n, max_size=n))
    rewards = torch.tensor(rows)
    if rewards.isnan().all():
        rewards[0, 0] = 1.0
    groups = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    lengths = torch.tensor(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    return rewards, groups, torch.arange(5) < lengths[:, None]


common = settings(max_examples=60)


@common
@given(batches(), st.sampled_from(METHODS), st.sampled_from(sorted(saw.PROFILES)))
def test_always_finite_and_zero_off_the_response(batch, method, profile):
    rewards, groups, mask = batch
    result = saw.compute_advantage(rewards, groups, mask, method=method, options={"profile": profile})
    assert result.tokens.isfinite().all()
    assert (result.tokens[~mask] == 0).all()
    assert result.weights.sum().item() == pytest.approx(1)
    assert (result.weights >= 0).all()


@common
@given(
    batches(),
    st.sampled_from(["saw_grpo", "saw_gdpo"]),
    st.sampled_from(MEASURES),
    st.sampled_from(["batch", "group"]),
    st.randoms(use_true_random=False),
)
def test_every_measure_is_finite_and_does_not_see_order(batch, method, name, over, random):
    rewards, groups, mask = batch
    order = list(range(len(rewards)))
    random.shuffle(order)
    ranges = objectives(maximum=[5.0] * rewards.shape[1])
    more = {"method": method, "objectives": ranges, "options": {"informativeness": name, "over": over}}
    result = saw.compute_advantage(rewards, groups, mask, **more)
    assert result.tokens.isfinite().all()
    assert result.weights.sum().item() == pytest.approx(1)
    assert (result.weights >= 0).all()
    shuffled = saw.compute_advantage(rewards[order], [groups[i] for i in order], mask[order], **more)
    torch.testing.assert_close(shuffled.tokens, result.tokens[order], atol=1e-4, rtol=1e-4)


@common
@given(batches(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_order_of_the_samples_does_not_matter(batch, method, random):
    rewards, groups, mask = batch
    order = list(range(len(rewards)))
    random.shuffle(order)
    plain = saw.compute_advantage(rewards, groups, mask, method=method)
    shuffled = saw.compute_advantage(rewards[order], [groups[i] for i in order], mask[order], method=method)
    torch.testing.assert_close(shuffled.tokens, plain.tokens[order], atol=1e-4, rtol=1e-4)


@common
@given(batches(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_order_of_the_objectives_does_not_matter(batch, method, random):
    rewards, groups, mask = batch
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    plain = saw.compute_advantage(rewards, groups, mask, method=method)
    shuffled = saw.compute_advantage(rewards[:, order], groups, mask, method=method)
    torch.testing.assert_close(shuffled.weights, plain.weights[order])
    torch.testing.assert_close(shuffled.tokens, plain.tokens, atol=1e-4, rtol=1e-4)


@common
@given(batches(), st.floats(0.25, 8.0), st.integers(-64, 64))
def test_weights_do_not_feel_scale_and_shift_of_a_reward(batch, scale, shift):
    rewards, groups, mask = batch
    rewards = rewards.double()
    plain = saw.compute_advantage(rewards, groups, mask, method="saw_gdpo")
    moved = saw.compute_advantage(
        rewards * scale + shift,
        groups,
        mask,
        method="saw_gdpo",
        objectives=objectives(minimum=[float(shift)] * rewards.shape[1]),
    )
    torch.testing.assert_close(moved.weights, plain.weights, atol=1e-6, rtol=1e-6)


@common
@given(batches(missing=False))
def test_saw_with_one_objective_is_the_method_without_saw(batch):
    rewards, groups, mask = batch
    for plain in ("grpo", "gdpo"):
        a = saw.compute_advantage(rewards[:, :1], groups, mask, method=plain)
        b = saw.compute_advantage(rewards[:, :1], groups, mask, method=f"saw_{plain}")
        torch.testing.assert_close(a.tokens, b.tokens, atol=1e-5, rtol=1e-5)


@common
@given(batches(missing=False))
def test_group_normalised_advantages_add_up_to_zero(batch):
    rewards, groups, mask = batch
    samples = saw.compute_advantage(rewards, groups, mask, method="saw_grpo").samples
    for group in set(groups):
        rows = [i for i, g in enumerate(groups) if g == group]
        assert samples[rows].sum().item() == pytest.approx(0, abs=1e-6)


@common
@given(batches(missing=False), st.sampled_from(METHODS), st.sampled_from(sorted(saw.PROFILES)))
def test_a_step_without_missing_rewards_is_computed_as_one_with_some(batch, method, profile):
    """Steps without missing rewards take a shortcut; an added sample without any reward disables it."""
    rewards, groups, mask = batch
    options = {"profile": profile}
    plain = saw.compute_advantage(rewards, groups, mask, method=method, options=options)
    more_rewards = torch.cat([rewards, torch.full_like(rewards[:1], math.nan)])
    more_mask = torch.cat([mask, torch.ones_like(mask[:1])])
    more = saw.compute_advantage(more_rewards, [*groups, 99], more_mask, method=method, options=options)
    torch.testing.assert_close(more.samples[:-1], plain.samples, rtol=1e-12, atol=1e-12)
    assert more.samples[-1] == 0
    for name in ("mean", "std", "min", "max", "cv"):
        values = getattr(more.statistics, name), getattr(plain.statistics, name)
        torch.testing.assert_close(*values, rtol=1e-12, atol=0, equal_nan=True)
    assert (more.statistics.missing - plain.statistics.missing).tolist() == [1] * rewards.shape[1]


@common
@example(samples=[(0, False)] * 7, values=[0.0] * 8, method="hvo")  # 7 x 0.01 / 7 is not 0.01
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=12),
    st.lists(st.floats(0, 1e6), min_size=8, max_size=8),
    st.sampled_from(METHODS),
)
def test_equal_rewards_of_a_group_have_advantages_of_exactly_zero(samples, values, method):
    """For any values, with or without missing ones: no rounding error is amplified."""
    groups = [group for group, _ in samples]
    rewards = torch.tensor([[values[2 * group], values[2 * group + 1]] for group in groups], dtype=torch.float64)
    for j, (_, missing) in enumerate(samples[1:]):
        if missing:
            rewards[j, 1] = math.nan
    result = saw.compute_advantage(rewards, groups, torch.ones(len(groups), 2), method=method)
    assert (result.tokens == 0).all()


@common
@given(st.data(), st.lists(st.integers(-3, 3), min_size=2, max_size=8))
def test_groups_do_not_depend_on_what_holds_their_ids(data, numbers):
    """Python, numpy and torch numbers, alone or mixed, in any container: equal numbers are the same prompt."""
    rewards = torch.arange(len(numbers)).float()[:, None] ** 2
    mask = torch.ones(len(numbers), 2)
    expected = saw.compute_advantage(rewards, [f"p{number}" for number in numbers], mask, method="grpo").tokens
    types = st.sampled_from([int, float, np.int64, np.float32, np.int8, np.array, torch.tensor])
    mixed = [data.draw(types)(number) for number in numbers]
    same = [numbers, torch.tensor(numbers), list(torch.tensor(numbers).double()), np.array(numbers), iter(mixed)]
    for ids in same:
        assert torch.equal(saw.compute_advantage(rewards, ids, mask, method="grpo").tokens, expected)


@common
@given(st.data(), st.sampled_from([torch.int8, torch.int64, torch.float32, torch.float64, torch.float16]))
def test_a_mask_is_zeros_and_ones_or_refused(data, dtype):
    """Any other value, at any position and for any sum of its row."""
    value = st.integers(-2, 3) if not dtype.is_floating_point else st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 1.75])
    row = st.lists(value, min_size=4, max_size=4)
    mask = torch.tensor(data.draw(st.lists(row, min_size=3, max_size=3))).to(dtype)
    rewards = torch.tensor([[0.0], [1.0], [3.0]])
    if ((mask == 0) | (mask == 1)).all():
        assert saw.compute_advantage(rewards, "ppp", mask, method="gdpo").tokens.isfinite().all()
    else:
        with pytest.raises(ValueError, match="responses is"):
            saw.compute_advantage(rewards, "ppp", mask, method="gdpo")
