"""Credit by turn (MT-GRPO, arXiv 2505.11821): by hand, against the paper's code, and what is refused."""

import math
import re

import numpy as np
import pytest
import torch

import saw
from saw.method.options import Options
from saw.method.registry import METHODS
from tests.methods import own_options

NAN = math.nan
H = 0.5 / (math.sqrt(0.5) + 1e-6)  # the normalised advantage of 1 against 0 in a group of two
#: Two dialogues of two turns with the tool's answer (0) between them; the second is a token shorter.
MASK = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 0, 1, 0, 0]])
TOOL, OUTCOME = saw.Objective("tool", turn=1), saw.Objective("outcome")
#: The first called the tool rightly and answered wrongly, the second the other way round.
REWARDS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def advantage(rewards=REWARDS, objectives=(TOOL, OUTCOME), mask=MASK, method="mo_grpo", groups=None, **more):
    more.setdefault("turns", saw.turns_of(mask))
    groups = groups or ["p"] * len(rewards)
    return saw.compute_advantage(rewards, groups, mask, method=method, objectives=objectives, **more)


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected, dtype=float), atol=1e-9)


def test_turns_are_the_runs_of_the_model_s_own_tokens():
    assert saw.turns_of(MASK).tolist() == [[1, 1, 0, 0, 2, 2], [1, 0, 0, 2, 0, 0]]
    assert saw.turns_of(torch.tensor([[0, 1, 0, 1, 1, 0, 1], [0] * 7])).tolist() == [[0, 1, 0, 2, 2, 0, 3], [0] * 7]
    assert saw.turns_of(torch.ones(2, 0)).shape == (2, 0)


def test_a_turn_s_reward_reaches_its_tokens_and_the_outcome_all_by_hand():
    objectives = (saw.Objective("tool", turn=1, priority=3.0), OUTCOME)
    result = advantage(objectives=objectives)
    close(result.tokens, [[2 * H, 2 * H, 0, 0, -H, -H], [-2 * H, 0, 0, H, 0, 0]])
    close(result.samples, [2 * H / 4, -H / 2])  # the means over 4 and over 2 tokens


def test_the_first_turn_s_credit_is_none_of_the_second_s_and_the_other_way_round():
    objectives = (TOOL, saw.Objective("answer", turn=2))
    close(advantage(objectives=objectives).tokens, [[H, H, 0, 0, -H, -H], [-H, 0, 0, H, 0, 0]])


def test_a_turn_that_no_objective_reaches_is_neither_trained_nor_whitened():
    objectives = (TOOL, saw.Objective("again", turn=1, priority=2.0))
    for method in ("mo_grpo", "gdpo"):
        tokens = advantage(objectives=objectives, method=method).tokens
        assert not tokens[saw.turns_of(MASK) != 1].any()
        assert tokens[0, 0] < 0 < tokens[1, 0]
    # GDPO: three tokens, -H, -H and H before whitening
    centred = np.array([-H, -H, H]) - np.mean([-H, -H, H])
    whitened = centred / math.sqrt(np.var([-H, -H, H], ddof=1) + 1e-8)
    close(advantage(objectives=objectives, method="gdpo").tokens[MASK.bool() & (saw.turns_of(MASK) == 1)], whitened)


def test_gdpo_whitens_over_all_tokens_by_hand():
    objectives = (saw.Objective("tool", turn=1, priority=3.0), OUTCOME)
    before = np.array([2 * H, 2 * H, -H, -H, -2 * H, H])  # of the six response tokens, from mo_grpo
    expected = (before - before.mean()) / math.sqrt(before.var(ddof=1) + 1e-8)
    tokens = advantage(objectives=objectives, method="gdpo").tokens
    close(tokens[MASK.bool()], expected)
    assert not tokens[~MASK.bool()].any()


@pytest.mark.parametrize("whitening", ["tokens", "samples", "none"])
@pytest.mark.parametrize("on", ["variance", "std"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_every_constant_of_a_profile_counts_by_turn_too_by_hand(whitening, on, ddof):
    h = 0.5 / (math.sqrt(0.5 / (2 - ddof)) + 1e-6)
    profile = {"whitening": whitening, "whitening_eps_on": on, "whitening_eps": 0.25, "ddof": ddof}
    objectives = (saw.Objective("tool", turn=1, priority=3.0), OUTCOME)
    before = np.array([2 * h, 2 * h, -h, -h, -2 * h, h])
    counted = before if whitening == "tokens" else before[[0, 2, 4, 5]]  # each turn of each sample once
    variance = counted.var(ddof=ddof)
    scale = math.sqrt(variance) + 0.25 if on == "std" else math.sqrt(variance + 0.25)
    expected = before if whitening == "none" else (before - counted.mean()) / scale
    tokens = advantage(objectives=objectives, method="gdpo", options={"profile": profile}).tokens
    close(tokens[MASK.bool()], expected)


def test_dvao_by_hand():
    """Each weight is the spread's share in the group, here 1/2."""
    close(advantage(method="dvao").tokens, [[0, 0, 0, 0, -H / 2, -H / 2], [0, 0, 0, H / 2, 0, 0]])


def test_dvao_divides_by_the_priorities_of_all_objectives_in_every_turn():
    objectives = (saw.Objective("tool", turn=1, priority=3.0), OUTCOME)
    tokens = advantage(method="dvao", objectives=objectives).tokens
    close(tokens, [[H / 2, H / 2, 0, 0, -H / 4, -H / 4], [-H / 2, 0, 0, H / 4, 0, 0]])


def test_saw_s_weights_multiply_each_turn():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 4.0], [1.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1]] * 4)
    result = advantage(rewards, mask=mask, method="saw_gdpo")
    deviations = rewards.numpy() - rewards.numpy().mean(axis=0)
    normalised = deviations / (rewards.numpy().std(axis=0, ddof=1) + 1e-6)
    tool, outcome = (2 * result.weights.numpy() * normalised).T
    assert result.weights[0] != pytest.approx(0.5, abs=0.01)
    before = np.stack([tool + outcome, outcome], axis=1)
    expected = (before - before.mean()) / math.sqrt(before.var(ddof=1) + 1e-8)
    close(result.tokens[:, [0, 2]], expected)


def test_as_in_the_paper_s_code():
    """The outcome everywhere, plus lambda times the turn's advantage before the tool's result."""
    generator = torch.Generator().manual_seed(0)
    coefficient, groups = 0.7, [number // 4 for number in range(12)]
    rewards = torch.rand(12, 2, generator=generator, dtype=torch.float64)
    mask = torch.ones(12, 9, dtype=torch.int64)
    for row, start in enumerate(torch.randint(1, 6, (12,), generator=generator).tolist()):
        mask[row, start : start + 2] = 0
    objectives = (saw.Objective("tool", turn=1, priority=coefficient), OUTCOME)
    expected = torch.zeros(12, 9, dtype=torch.float64)
    for row in range(12):
        group = rewards[[other for other in range(12) if groups[other] == groups[row]]]
        tool, outcome = (rewards[row] - group.mean(dim=0)) / (group.std(dim=0) + 1e-6)
        first_result = mask[row].tolist().index(0)
        expected[row] = outcome * mask[row]
        expected[row, :first_result] += coefficient * tool
    close(advantage(rewards, objectives, mask, groups=groups).tokens, expected)


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.aggregation.linear])
@pytest.mark.parametrize("profile", ["paper", "released"])
def test_with_one_turn_each_it_is_the_method_itself(method, profile):
    if "gradients" in METHODS[method].needs(Options()):
        pytest.skip("refused")
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    rewards[2, 0] = rewards[4] = NAN
    mask = (torch.arange(5) < torch.tensor([[1], [5], [3], [0], [2], [4], [5]])).long()
    rewards[3] = NAN  # an empty response has no turn
    static = own_options(method)
    arguments = {"method": method, "groups": [0, 0, 0, 1, 1, 1, 2], "options": {"profile": profile, **static}}
    whole, one = (advantage(rewards, [saw.Objective("a", turn=turn), OUTCOME], mask, **arguments) for turn in (None, 1))
    close(one.tokens, whole.tokens)
    close(one.samples[3], 0.0)
    close(one.samples[[0, 1, 2, 4, 5, 6]], whole.samples[[0, 1, 2, 4, 5, 6]])


def test_a_sample_without_the_turn_is_left_out_of_its_statistics():
    """Three samples; the last stopped after its first turn, so it has no reward of the second."""
    mask = torch.tensor([[1, 0, 1], [1, 0, 1], [1, 0, 0]])
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, NAN]], dtype=torch.float64)
    result = advantage(rewards, (OUTCOME, saw.Objective("answer", turn=2)), mask)
    first = np.array([0.5, -0.5, 0.0]) / (0.5 + 1e-6)
    close(result.tokens, np.array([first, [0, 0, 0], [first[0] - H, first[1] + H, 0]]).T)
    assert result.statistics.missing.tolist() == [0, 1]


def test_tokens_that_are_masked_later_leave_the_turns_as_they_were():
    """Rejection by rollout correction removes the second of the first turn's tokens, and a whole second turn."""
    mask = MASK.clone()
    mask[0, 1] = mask[1, 3] = 0
    tokens = advantage(mask=mask, turns=saw.turns_of(MASK), objectives=(TOOL, saw.Objective("b", turn=2))).tokens
    close(tokens, [[H, 0, 0, 0, -H, -H], [-H, 0, 0, 0, 0, 0]])


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if not each.aggregation.linear])
def test_methods_that_sum_first_are_refused_with_those_that_do_not(method):
    more = {"options": own_options(method)}
    with pytest.raises(ValueError, match=rf"'tool' is 1, but {method} .*mo_grpo, saw_gdpo, .*dvao, lagrangian, or"):
        advantage(method=method, **more)
    if "gradients" not in METHODS[method].needs(Options()):
        ranges = {"minimum": 0.0, "maximum": 1.0}
        both = [saw.Objective("outcome", **ranges), saw.Objective("other", **ranges)]
        advantage(method=method, objectives=both, **more)  # as before


@pytest.mark.parametrize(
    ("method", "options"),
    [("gradient_gdpo", {"gradient": {"lr": 1e-3}}), ("saw_gdpo", {"informativeness": "gradient_norm"})],
)
def test_policy_gradients_are_of_whole_responses(method, options):
    with pytest.raises(ValueError, match=rf"'tool' is 1, but {method} compares policy gradients"):
        advantage(method=method, options=options, gram=torch.eye(2))


@pytest.mark.parametrize("turn", [0, -1, 1.0, True, "1"])
def test_a_turn_is_a_number_from_1(turn):
    with pytest.raises(ValueError, match=rf"turn of 'a' is {re.escape(repr(turn))}; expected an integer .* at least 1"):
        saw.Objective("a", turn=turn)


@pytest.mark.parametrize("turn", [2, 3])
def test_fewer_turns_than_rewarded(turn):
    mask = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match=rf"'late' is 1 for sample 1, and belongs to turn {turn}, .* has 1 turns.*NaN"):
        advantage(objectives=(OUTCOME, saw.Objective("late", turn=turn)), mask=mask)


def test_an_empty_response_has_no_turn():
    with pytest.raises(ValueError, match=r"'tool' is 1 for sample 0, .* has 0 turns"):
        advantage(mask=torch.zeros(2, 0))


@pytest.mark.parametrize(
    ("turns", "kind", "words"),
    [
        (None, ValueError, "turns is None"),
        (saw.turns_of(MASK)[:, :5], ValueError, r"turns has shape \(2, 5\) and responses \(2, 6\)"),
        (saw.turns_of(MASK).float(), TypeError, "torch.float32; expected a tensor of integers"),
        (MASK.bool(), TypeError, "torch.bool"),
        ([[1] * 6] * 2, TypeError, "list"),
        (saw.turns_of(MASK) - 1, ValueError, "turns is 0 for token 0 of sample 0"),
        (-saw.turns_of(MASK), ValueError, "turns is -1 for token 0 of sample 0"),
    ],
)
def test_missing_or_wrong_turns(turns, kind, words):
    with pytest.raises(kind, match=words):
        advantage(turns=turns)


def test_lengths_do_not_say_where_turns_are():
    with pytest.raises(ValueError, match=r"responses has shape \(2,\); objectives of a turn need the mask"):
        saw.compute_advantage(REWARDS, ["p"] * 2, torch.tensor([4, 2]), method="gdpo", objectives=(TOOL, OUTCOME))


def test_turns_are_not_read_without_an_objective_of_a_turn():
    plain = advantage(objectives=None, turns=None)
    assert advantage(objectives=None, turns="anything").tokens.equal(plain.tokens)
