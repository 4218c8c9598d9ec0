"""saw.compute_advantage against values computed by hand."""

import math
import uuid
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import saw
from tests.objectives import objectives

METHODS = ["grpo", "gdpo", "saw_grpo", "saw_gdpo"]
NAN = math.nan


def full_mask(n: int, t: int = 3) -> torch.Tensor:
    return torch.ones(n, t, dtype=torch.int64)


def advantage(rewards, groups, *, method, mask=None, **kwargs) -> saw.Advantage:
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    return saw.compute_advantage(
        rewards, groups, full_mask(len(rewards)) if mask is None else mask, method=method, **kwargs
    )


# One prompt, rewards (0, 0), (1, 0), (2, 3), (1, 1). Means 1 and 1; deviations (-1,-1), (0,-1), (1,2), (0,0);
# variances (ddof=1) 2/3 and 2; so CV = sqrt(2/3) and sqrt(2), in the ratio 1 : sqrt(3).
REWARDS = [[0.0, 0.0], [1.0, 0.0], [2.0, 3.0], [1.0, 1.0]]
GROUP = ["p"] * 4
SAW_WEIGHTS = [1 / (1 + math.sqrt(3)), math.sqrt(3) / (1 + math.sqrt(3))]


def test_grpo_by_hand():
    # Sums of the deviations -2, -1, 3, 0; their variance (4 + 1 + 9) / 3.
    expected = torch.tensor([-2.0, -1.0, 3.0, 0.0]) / math.sqrt(14 / 3)
    result = advantage(REWARDS, GROUP, method="grpo")
    torch.testing.assert_close(result.tokens, expected[:, None].expand(4, 3), atol=1e-5, rtol=0)
    assert result.weights.tolist() == [0.5, 0.5]


def test_saw_grpo_by_hand():
    result = advantage(REWARDS, GROUP, method="saw_grpo", objectives=objectives(minimum=[0, 0]))
    torch.testing.assert_close(result.weights, torch.tensor(SAW_WEIGHTS).double(), atol=1e-7, rtol=0)
    a, b = SAW_WEIGHTS
    combined = torch.tensor([-a - b, -b, a + 2 * b, 0.0])
    expected = combined / math.sqrt(float((combined**2).sum()) / 3)
    torch.testing.assert_close(result.tokens[:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "weights"), [("gdpo", [0.5, 0.5]), ("saw_gdpo", SAW_WEIGHTS)])
def test_gdpo_by_hand(method, weights):
    first = np.array([-1, 0, 1, 0]) / math.sqrt(2 / 3)
    second = np.array([-1, -1, 2, 0]) / math.sqrt(2)
    combined = 2 * (weights[0] * first + weights[1] * second)
    # Whitened over 12 tokens, of which each sample has three.
    tokens = np.repeat(combined, 3)
    expected = (combined - tokens.mean()) / tokens.std(ddof=1)
    result = advantage(REWARDS, GROUP, method=method)
    np.testing.assert_allclose(result.tokens[:, 0].numpy(), expected, atol=1e-5)


def test_whitening_weighs_a_sample_by_its_tokens():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]])
    tokens = advantage(REWARDS, GROUP, method="gdpo", mask=mask).tokens
    values = tokens[mask.bool()]
    assert values.mean().item() == pytest.approx(0, abs=1e-6)
    assert values.std().item() == pytest.approx(1, abs=1e-5)
    assert (tokens[mask == 0] == 0).all()


def test_the_shift_of_the_paper_and_of_the_released_code():
    rewards = [[-3.0], [-1.0], [1.0], [3.0]]
    std = np.std([-3, -1, 1, 3], ddof=1)
    cv = advantage(rewards, GROUP, method="saw_grpo", objectives=objectives(minimum=[-3])).statistics.cv
    assert cv.item() == pytest.approx(std / (3 + 2e-8), rel=1e-9)
    released = advantage(
        rewards, GROUP, method="saw_grpo", objectives=objectives(minimum=[-3]), options={"profile": "released"}
    )
    assert released.statistics.cv.item() == pytest.approx(std / (3 + 1e-8), rel=1e-9)


def test_priorities_multiply_after_the_weight():
    plain = advantage(REWARDS, GROUP, method="saw_grpo")
    scaled = advantage(REWARDS, GROUP, method="saw_grpo", objectives=objectives(priority=[2.0, 1.0]))
    torch.testing.assert_close(plain.weights, scaled.weights)  # CV does not depend on a multiplicative scale
    a, b = 2 * SAW_WEIGHTS[0], SAW_WEIGHTS[1]
    combined = torch.tensor([-a - b, -b, a + 2 * b, 0.0])
    expected = combined / math.sqrt(float((combined**2).sum()) / 3)
    torch.testing.assert_close(scaled.tokens[:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_priority_zero_silences_an_objective(method):
    one = advantage([[row[0]] for row in REWARDS], GROUP, method=method)
    both = advantage(REWARDS, GROUP, method=method, objectives=objectives(priority=[1.0, 0.0]))
    torch.testing.assert_close(both.tokens, one.tokens, atol=1e-4, rtol=0)


def test_statistics():
    rewards = [[0.0, 1.0], [2.0, 1.0], [5.0, NAN], [5.0, 1.0]]
    statistics = advantage(
        rewards, ["a", "a", "b", "b"], method="saw_grpo", objectives=objectives(minimum=[-1, 0])
    ).statistics
    assert statistics.mean.tolist() == [3.0, 1.0]
    assert statistics.std.tolist() == pytest.approx([np.std([0, 2, 5, 5], ddof=1), 0.0])
    assert statistics.cv.tolist() == pytest.approx([np.std([0, 2, 5, 5], ddof=1) / 4, 0.0], rel=1e-7)
    assert statistics.min.tolist() == [0.0, 1.0]
    assert statistics.max.tolist() == [5.0, 1.0]
    assert statistics.zero_spread.tolist() == [0.5, 1.0]
    assert statistics.missing.tolist() == [0, 1]


def test_penalty_is_taken_off_the_combined_reward():
    penalty = torch.tensor([0.0, 0.0, 0.0, 3.0])
    combined = torch.tensor([0.0, 1.0, 5.0, 2.0])[:, None] / 2 - penalty[:, None]
    expected = advantage(combined, GROUP, method="grpo").tokens
    torch.testing.assert_close(advantage(REWARDS, GROUP, method="grpo", penalty=penalty).tokens, expected)
    with pytest.raises(ValueError, match="penalty"):
        advantage(REWARDS, GROUP, method="gdpo", penalty=penalty)


# ---------------------------------------------------------------- the corners


def test_group_of_one():
    rewards = [[3.0], [0.0], [1.0]]
    groups = ["lone", "p", "p"]
    assert advantage(rewards, groups, method="grpo").tokens[0].tolist() == [0.0] * 3
    released = advantage(rewards, groups, method="grpo", options={"profile": "released"})
    assert released.tokens[0].tolist() == pytest.approx([3.0] * 3, rel=1e-5)


@pytest.mark.parametrize("profile", saw.PROFILES)
@pytest.mark.parametrize("method", METHODS)
def test_empty_response_has_no_tokens_and_counts_in_its_group(method, profile):
    mask = full_mask(4)
    mask[2] = 0
    result = advantage(REWARDS, GROUP, method=method, mask=mask, options={"profile": profile})
    assert result.tokens[2].tolist() == [0.0] * 3
    assert result.statistics.mean.tolist() == [1.0, 1.0]
    assert result.tokens.isfinite().all()
    everything_empty = advantage(REWARDS, GROUP, method=method, mask=torch.zeros(4, 3))
    assert (everything_empty.tokens == 0).all()


@pytest.mark.parametrize("profile", saw.PROFILES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_constant_batch_has_equal_weights_and_no_advantage(method, profile, value):
    rewards = torch.full((9, 2), value)
    groups = ["a", "b", "c"] * 3
    result = advantage(rewards, groups, method=method, options={"profile": profile})
    assert result.weights.tolist() == [0.5, 0.5]
    assert (result.tokens == 0).all()


def test_constant_objective_gets_no_weight():
    result = advantage([[1.0, 0.0], [1.0, 1.0]], ["p", "p"], method="saw_gdpo")
    assert result.weights.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("method", METHODS)
def test_missing_value_is_left_out_and_the_others_count(method):
    rewards = [[0.0, 0.0], [1.0, NAN], [2.0, 1.0], [1.0, 0.5]]
    result = advantage(rewards, GROUP, method=method)
    assert result.tokens.isfinite().all()
    assert result.statistics.mean[1].item() == 0.5
    # Sample 1 is at the mean of its only objective; the missing one contributes nothing. Whitening shifts the mean.
    assert result.samples[1].item() == pytest.approx(result.samples.mean().item(), abs=1e-6)
    # Were the missing value a 0, the second objective would pull the sample down.
    as_zero = advantage(np.nan_to_num(rewards), GROUP, method=method)
    assert as_zero.samples[1].item() < result.samples[1].item() - 0.1


@pytest.mark.parametrize("method", METHODS)
def test_objective_missing_everywhere_is_as_if_it_were_not_there(method):
    one = advantage([[row[0]] for row in REWARDS], GROUP, method=method)
    both = advantage([[row[0], NAN] for row in REWARDS], GROUP, method=method)
    torch.testing.assert_close(both.tokens, one.tokens, atol=1e-4, rtol=0)
    assert both.statistics.missing.tolist() == [0, 4]
    assert both.statistics.mean[1].isnan()  # the mean of no values is NaN, never 0
    if method.startswith("saw"):
        assert both.weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("profile", saw.PROFILES)
@pytest.mark.parametrize("method", METHODS)
def test_sample_without_any_reward_has_no_advantage_and_no_say(method, profile):
    groups = ["p"] * 4 + ["q"]
    with_lost = advantage([*REWARDS, [NAN, NAN]], groups, method=method, options={"profile": profile})
    without = advantage(REWARDS, GROUP, method=method, options={"profile": profile})
    assert with_lost.tokens[4].tolist() == [0.0] * 3
    torch.testing.assert_close(with_lost.tokens[:4], without.tokens)


# ---------------------------------------------------------------- precision, shapes, ids


@pytest.mark.parametrize("k", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_objectives(method, k):
    generator = torch.Generator().manual_seed(k)
    result = advantage(torch.rand(32, k, generator=generator), [i % 8 for i in range(32)], method=method)
    assert result.weights.shape == (k,)
    assert result.weights.sum().item() == pytest.approx(1)
    assert result.tokens.isfinite().all()
    assert result.tokens.abs().max() > 0.1


def test_a_million_samples_with_a_large_offset():
    n = 1_000_000
    rewards = (torch.rand(n, 2, generator=torch.Generator().manual_seed(0)) * 1024).round() / 1024 + 4096.0
    result = saw.compute_advantage(
        rewards,
        torch.arange(n) // 4,
        torch.ones(n, 1),
        method="saw_gdpo",
        objectives=objectives(minimum=[4096.0, 4096.0]),
    )
    exact = rewards.double()
    torch.testing.assert_close(result.statistics.std, exact.std(dim=0), rtol=1e-10, atol=0)
    torch.testing.assert_close(result.statistics.mean, exact.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.statistics.cv, exact.std(dim=0) / (exact.mean(dim=0) - 4096), rtol=1e-7, atol=0)
    moved = saw.compute_advantage(rewards - 4096, torch.arange(n) // 4, torch.ones(n, 1), method="saw_gdpo")
    torch.testing.assert_close(result.tokens, moved.tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "b", "a"],
        [("x", 1), ("y", 2), ("x", 1), ("y", 2)],
        [7, None, 7, None],
        np.array(["b", "a", "b", "a"], dtype=object),
        np.array([3, 1, 3, 1]),
        torch.tensor([9, 2, 9, 2]),
        iter("baba"),
    ],
    ids=["strings", "tuples", "mixed", "object array", "integer array", "tensor", "iterator"],
)
def test_group_ids_of_any_kind_and_order(ids):
    result = advantage([[0.0], [5.0], [2.0], [7.0]], ids, method="grpo")
    assert result.tokens[:, 0].tolist() == pytest.approx(
        [-math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(0.5), math.sqrt(0.5)], abs=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_any_dtype_of_mask(dtype):
    mask = torch.tensor([[1, 1, 0]] * 4).to(dtype)
    result = advantage(REWARDS, GROUP, method="saw_gdpo", mask=mask)
    assert result.tokens.dtype == torch.float32
    torch.testing.assert_close(result.tokens, advantage(REWARDS, GROUP, method="saw_gdpo", mask=mask.long()).tokens)


def test_the_inputs_are_left_as_they_are():
    rewards, mask = torch.tensor(REWARDS), torch.ones(4, 3)
    saw.compute_advantage(rewards, GROUP, mask, method="saw_gdpo")
    assert torch.equal(rewards, torch.tensor(REWARDS))
    assert torch.equal(mask, torch.ones(4, 3))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "ppo"}, ["'ppo'", "saw_gdpo"]),
        ({"options": {"profile": "new"}}, ["profile", "paper", "released"]),
        ({"options": {"profil": "paper"}}, ["profil"]),
        ({"rewards": torch.zeros(0, 2), "groups": [], "responses": torch.ones(0, 3)}, ["no rewards"]),
        ({"rewards": torch.zeros(4, 0)}, ["no rewards"]),
        ({"rewards": torch.full((4, 2), NAN)}, ["no rewards", "missing"]),
        (
            {"rewards": torch.tensor([[0.0, 1.0], [0.0, math.inf], [0.0, 0.0], [0.0, 0.0]])},
            ["'fmt'", "inf", "sample 1"],
        ),
        ({"rewards": torch.zeros(4)}, ["rewards", "(4,)"]),
        ({"responses": torch.ones(3, 3)}, ["responses", "3", "4"]),
        ({"groups": ["p"] * 3}, ["groups", "3", "4"]),
        ({"objectives": objectives(minimum=[0.0])}, ["objectives", "expected 2"]),
        ({"objectives": objectives(name=["corr", "fmt"], minimum=[0.0, 0.5])}, ["'fmt'", "0", "0.5"]),
        ({"objectives": [saw.Objective("a"), saw.Objective("a")]}, ["'a'", "duplicate"]),
        ({"penalty": torch.zeros(3)}, ["penalty", "(4,)"]),
    ],
)
def test_bad_input_is_named(change, words):
    good = {
        "rewards": torch.zeros(4, 2),
        "groups": ["p"] * 4,
        "responses": torch.ones(4, 3),
        "method": "saw_grpo",
        "objectives": objectives(name=["corr", "fmt"], minimum=[-3.0, 0.0]),
    }
    with pytest.raises(ValueError, match=r".") as error:
        saw.compute_advantage(**{**good, **change})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"priority": -2.0}, ["priority", "-2", "at least 0"]),
        ({"priority": NAN}, ["priority", "nan", "finite"]),
        ({"priority": 1e300}, ["priority", "1e+300"]),
        ({"priority": None}, ["priority", "None"]),
        ({"minimum": -math.inf}, ["minimum", "-inf"]),
        ({"maximum": "1"}, ["maximum", "'1'"]),
        ({"minimum": 1.0, "maximum": 0.5}, ["maximum", "0.5", "1.0"]),
    ],
)
def test_an_objective_that_makes_no_sense_is_named(fields, words):
    with pytest.raises(ValueError, match="'fmt'") as error:
        saw.Objective("fmt", **fields)
    for word in words:
        assert word in str(error.value)


def test_lengths_do_for_a_mask():
    """Callers without a mask pass the number of response tokens and read ``samples``."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    for method in (*METHODS, "mo_grpo", "dvao"):
        expected = advantage(REWARDS, GROUP, method=method, mask=mask)
        for dtype in (torch.int64, torch.float32):
            found = advantage(REWARDS, GROUP, method=method, mask=mask.sum(dim=1).to(dtype))
            torch.testing.assert_close(found.samples, expected.samples, rtol=0, atol=0)
            assert found.tokens is None


@pytest.mark.parametrize("wrong", [-1.0, 0.5, NAN, math.inf])
def test_a_length_that_is_no_number_of_tokens_is_named(wrong):
    with pytest.raises(ValueError, match=r"responses is .* for sample 2"):
        advantage(REWARDS, GROUP, method="saw_gdpo", mask=torch.tensor([1.0, 2.0, wrong, 1.0]))


def test_bad_types():
    with pytest.raises(TypeError, match=r"saw\.Objective"):
        advantage(REWARDS, GROUP, method="grpo", objectives=["corr", "fmt"])
    with pytest.raises(TypeError, match="rewards is a list"):
        saw.compute_advantage([[1.0]], ["p"], torch.ones(1, 1), method="grpo")
    with pytest.raises(TypeError, match="not hashable"):
        saw.compute_advantage(torch.zeros(2, 1), [[1], [2]], torch.ones(2, 1), method="grpo")


def test_a_minimum_that_is_no_binary_fraction_is_not_undercut_by_rounding():
    rewards = torch.tensor([[-0.1], [0.3]])
    saw.compute_advantage(
        rewards, ["p", "p"], torch.ones(2, 1), method="saw_grpo", objectives=objectives(minimum=[-0.1])
    )


@pytest.mark.parametrize("method", ["saw_grpo", "saw_gdpo"])
def test_without_minima_a_negative_reward_is_an_error(method):
    with pytest.raises(ValueError, match="minimum 0"):
        advantage([[-1.0], [1.0]], ["p", "p"], method=method)


# ---------------------------------------------------------------- misleading ids and masks

IDS = {
    "list of a tensor": list(torch.tensor([9, 2, 9, 2])),
    "list of a float tensor": list(torch.tensor([0.5, 2.0, 0.5, 2.0])),
    "list of a bool tensor": list(torch.tensor([True, False, True, False])),
    "tensors that require a gradient": list(torch.tensor([1.5, 2.0, 1.5, 2.0], requires_grad=True)),
    "object array of tensors": np.array([*torch.tensor([9, 2, 9, 2]), None], dtype=object)[:4],
    "arrays without dimensions": [np.array(3), np.array(1), np.array(3), np.array(1)],
    "texts without dimensions": [np.array("b"), np.array("a"), "b", np.str_("a")],
    "one number in many types": [1, np.int32(7), 1.0, torch.tensor(7)],
    "True is 1": [True, 0, 1, np.bool_(False)],
    "numpy scalars": list(np.array([3, 1, 3, 1])),
    "tensors in tuples": [(torch.tensor(1), "x"), (1, "y"), (1.0, "x"), (np.int64(1), np.str_("y"))],
    "float array": np.array([0.5, 1.0, 0.5, 1.0]),
    "uuids": [uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=1), uuid.UUID(int=2)],
    "text and nothing": ["b", None, "b", None],
    "bytes": [b"b", b"a", b"b", b"a"],
    "dates": list(np.array(["2020-01-02", "2020-01-01"] * 2, dtype="datetime64[ns]")),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_equal_ids_are_one_group_whatever_holds_them(ids):
    """Ids with a clear meaning that hash by identity, or have another type than an equal id."""
    result = advantage([[0.0], [5.0], [2.0], [7.0]], ids, method="grpo")
    half = math.sqrt(0.5)
    assert result.tokens[:, 0].tolist() == pytest.approx([-half, -half, half, half], abs=1e-5)


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([1.0, NAN, 1.0, NAN], ValueError, ["groups[1]", "nan"]),
        ([NAN] * 4, ValueError, ["groups[0]", "nan"]),
        ([1, 2, 1, np.float32("nan")], ValueError, ["groups[3]", "nan"]),
        (torch.tensor([1.0, 1.0, NAN, NAN]), ValueError, ["groups[2]", "nan"]),
        (list(torch.tensor([1.0, 1.0, 1.0, NAN])), ValueError, ["groups[3]", "nan"]),
        (np.array(["p", "p", "q", NAN], dtype=object), ValueError, ["groups[3]", "nan"]),
        ([("p", 1.0), ("p", NAN), ("p", 1.0), ("p", 1.0)], ValueError, ["groups[1]", "nan"]),
        ([Decimal(1), Decimal("NaN"), Decimal(1), Decimal(1)], ValueError, ["groups[1]", "NaN"]),
        ([complex(0, NAN)] * 4, ValueError, ["groups[0]", "nan"]),
        ([np.datetime64("NaT")] * 4, ValueError, ["groups[0]", "NaT"]),
        ([1, 2, "1", "2"], ValueError, ["groups[0] is 1", "groups[2] is '1'"]),
        (["1", "1", torch.tensor(1), "1"], ValueError, ["groups[2] is 1", "groups[0] is '1'"]),
        (["p", b"p", "p", "p"], ValueError, ["groups[0] is 'p'", "groups[1] is b'p'"]),
        (["p", "p", ["p"], "p"], TypeError, ["groups[2]", "['p']", "list"]),
        (["p", "p", "p", {}], TypeError, ["groups[3]", "{}", "dict"]),
        (list(torch.tensor([[1], [2], [1], [2]])), TypeError, ["groups[0]", "tensor([1])"]),
        (list(np.array([[1, 2]] * 4)), TypeError, ["groups[0]", "array([1, 2])"]),
        ([("p", [1])] * 4, TypeError, ["groups[0]", "[1]", "list"]),
        ([1, Decimal("sNaN"), 1, 1], TypeError, ["groups[1]", "sNaN"]),
        (torch.tensor([[1], [2], [1], [2]]), ValueError, ["(4, 1)", "(4,)"]),
        (torch.tensor(3), ValueError, ["shape ()", "(4,)"]),
        (np.array("p"), ValueError, ["shape ()", "(4,)"]),
    ],
)
def test_an_id_without_a_plain_meaning_is_named(ids, error, words):
    """Ids that would silently put a sample into a group of one or an unintended group, and unusable ids."""
    with pytest.raises(error) as raised:
        advantage([[0.0], [5.0], [2.0], [7.0]], ids, method="grpo")
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("row", "token", "value"),
    [
        ([-1, 1, 1], 0, "-1"),
        ([1, 2, 0], 1, "2"),
        ([1, 3, -1], 1, "3"),  # sums to the number of tokens
        ([1, 1, 256], 2, "256"),  # 0 as a byte
        ([1, 1, 2**32], 2, "4294967296"),  # 0 as an int32
        ([0.5, 0.5, 0.0], 0, "0.5"),
        ([1.0, 1.5, 0.5], 1, "1.5"),  # sums to the number of tokens
        ([1.0, 1.0, 1e-6], 2, "e-0"),  # nearly 0
        ([1.0, NAN, 0.0], 1, "nan"),
        ([1.0, 1.0, math.inf], 2, "inf"),
        ([-math.inf, 1.0, 1.0], 0, "-inf"),
    ],
)
@pytest.mark.parametrize("method", ["grpo", "gdpo", "dvao"])
def test_a_mask_of_anything_but_0_and_1_is_named(method, row, token, value):
    """Mask values that would scale, negate or overflow a token's advantage, or give a wrong number of tokens."""
    kinds = [torch.int64] if isinstance(row[0], int) else [torch.float32, torch.float64, torch.bfloat16]
    for dtype in kinds:
        mask = torch.ones(4, 3, dtype=dtype)
        mask[2] = torch.tensor(row, dtype=dtype)
        with pytest.raises(ValueError, match=f"responses is .* for token {token} of sample 2") as error:
            advantage(REWARDS, GROUP, method=method, mask=mask)
        assert value in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_a_mask_of_small_integers_is_checked_too(dtype):
    """The same for other integer types, signed and unsigned."""
    with pytest.raises(ValueError, match="responses is -1 for token 0 of sample 0"):
        advantage(REWARDS, GROUP, method="gdpo", mask=torch.full((4, 3), -1, dtype=dtype))
    with pytest.raises(ValueError, match="responses is 255 for token 0 of sample 0"):
        advantage(REWARDS, GROUP, method="gdpo", mask=torch.full((4, 3), 255, dtype=torch.uint8))


def test_a_complex_mask_is_of_the_wrong_type():
    """A mask whose imaginary part would silently be dropped."""
    with pytest.raises(TypeError, match=r"responses has dtype torch\.complex64"):
        advantage(REWARDS, GROUP, method="gdpo", mask=torch.ones(4, 3, dtype=torch.complex64))


@pytest.mark.parametrize("method", [*METHODS, "mo_grpo", "dvao"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_unusual_layout(method, dtype):
    """Masks without any token, and views whose rows are not contiguous."""
    empty = advantage(REWARDS, GROUP, method=method, mask=torch.zeros(4, 0, dtype=dtype))
    assert empty.tokens.shape == (4, 0)
    assert empty.samples.isfinite().all()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).to(dtype)
    expected = advantage(REWARDS, GROUP, method=method, mask=mask).tokens
    for view in (mask.T.contiguous().T, torch.stack([mask, mask], dim=2)[:, :, 0]):
        torch.testing.assert_close(advantage(REWARDS, GROUP, method=method, mask=view).tokens, expected)
    expanded = torch.ones(1, 1).to(dtype).expand(4, 3)
    assert advantage(REWARDS, GROUP, method=method, mask=expanded).tokens.isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"penalty": torch.tensor([0.0, NAN, 0.0, 0.0])}, ["penalty", "nan", "sample 1"]),
        ({"penalty": torch.tensor([0.0, 0.0, 0.0, -math.inf])}, ["penalty", "-inf", "sample 3"]),
        ({"rewards": torch.tensor([[1e200, 1.0]] * 4, dtype=torch.float64)}, ["'objective 0'", "1e+200", "sample 0"]),
        ({"rewards": torch.tensor([[1.0, NAN], [1.0, -math.inf]] * 2)}, ["'objective 1'", "-inf", "sample 1"]),
        ({"previous_weights": [NAN, 1.0]}, ["previous_weights", "nan"]),
        ({"previous_weights": [1.0]}, ["previous_weights", "2"]),
        ({"previous_weights": [2.0, -1.0]}, ["previous_weights", "-1"]),
    ],
)
def test_no_other_input_makes_the_result_infinite(change, words):
    """The promise "always finite" for all other inputs: a NaN or an overflow is refused, not passed on."""
    good = {"rewards": torch.tensor(REWARDS), "groups": GROUP, "responses": full_mask(4), "method": "saw_grpo"}
    with pytest.raises(ValueError, match=r".") as error:
        saw.compute_advantage(**{**good, "options": {"ema": 0.5}, **change})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": -1}, "step is -1"),
        ({"step": 1.5}, r"step is 1\.5"),
        ({"step": None}, "step is None"),
        ({"penalty": [0.0, 0.0]}, "penalty is a list"),
        ({"gram": [[1.0, 0.0], [0.0, 1.0]]}, "gram is a list"),
        ({"groups": {"p", "q"}}, "groups is .* a set"),  # its order is not that of the samples
        ({"groups": {"p": 0, "q": 1}}, "groups is .* a dict"),
        ({"groups": None}, "groups is None"),
        ({"objectives": saw.Objective("a")}, "objectives is Objective"),
        ({"options": "ema"}, "options is 'ema'"),
        ({"options": 5}, "options is 5"),
        ({"method": "static_grpo", "options": {"static_weights": [1e308, 1e308]}}, "finite sum"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(wrong, message):
    given = {"groups": ["p", "p"], "responses": torch.tensor([3, 2]), "method": "random_grpo"} | wrong
    with pytest.raises((ValueError, TypeError), match=message):
        saw.compute_advantage(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), **given)


@pytest.mark.parametrize("number", [np.float32(-1), np.int64(-1), Fraction(-1)])
def test_bounds_may_be_any_real_number(number):
    assert saw.Objective("a", minimum=number, maximum=-number).range == (-1.0, 1.0)


@pytest.mark.parametrize("number", [10**400, "1", 1j, [1], torch.tensor(1.0)])
def test_bounds_that_are_no_finite_number_are_refused(number):
    with pytest.raises(ValueError, match="the minimum of 'a' is"):
        saw.Objective("a", minimum=number)
