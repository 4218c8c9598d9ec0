"""The plug-in's parts, without a pipeline: rows, estimator, reward manager, metrics."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

import saw
from saw.method.metrics import training_metrics
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from saw.verl.estimator import StepRewards, estimate, rewards_of_step
from saw.verl.replay_buffer import has_spread
from saw.verl.reward_manager import Failures, MultiRewardManager, finite_score, with_finite_score
from saw.verl.step_metrics import validation_metrics
from saw.verl.transfer_queue import checked_objective_matrix, objective_matrix, reward_infos, scored_rows
from tests.configs import compose
from tests.objectives import objectives

NAN = math.nan
SETTINGS = Settings(
    method="saw_gdpo", objectives={"format": {"minimum": 0}, "correctness": {"minimum": -3, "priority": 2}}
)


# ---------------------------------------------------------------- rows


def test_scored_rows_are_the_last_output_of_each_session_and_no_padding():
    keys = ["u1_0_0", "u1_0_1", "u1_1_0", "pad7_0_0", "u2_0_0"]
    tags = [{}, {}, {}, {"is_padding": True}, {}]
    scored, of_row = scored_rows(keys, tags)
    assert scored.tolist() == [1, 2, 4]
    assert of_row.tolist() == [0, 0, 1, -1, 2]


def test_the_last_output_is_found_in_any_order():
    scored, of_row = scored_rows(["u_0_10", "u_0_9", "u_0_2"], [{}, {}, {}])
    assert scored.tolist() == [0]
    assert of_row.tolist() == [0, 0, 0]


def test_objective_matrix_reads_nan_and_none_as_missing():
    infos = [{"format": 1, "correctness": NAN}, {"format": None, "correctness": np.float64(2.5)}]
    data = list_of_dict_to_tensordict([{"extra_fields": {"reward_extra_info": info}} for info in infos])
    matrix = objective_matrix(data, SETTINGS.names)
    assert matrix[0, 0] == 1
    assert matrix[1, 1] == 2.5
    assert matrix.isnan().tolist() == [[False, True], [True, False]]


def test_an_objective_that_is_not_returned_is_named():
    data = list_of_dict_to_tensordict([{"extra_fields": {"reward_extra_info": {"format": 1.0, "score": 1.0, "x": 0}}}])
    with pytest.raises(
        ConfigError, match="'correctness', which the reward function does not return; it returns format, x"
    ):
        checked_objective_matrix(reward_infos(data), SETTINGS)


# ---------------------------------------------------------------- estimator


def step_of(rewards, keys, tags, scores=None, method="saw_gdpo") -> StepRewards:
    scored, of_row = scored_rows(keys, tags)
    settings = SETTINGS.model_copy(update={"method": method})
    return StepRewards(
        settings=settings,
        objectives=objectives(name=settings.names, minimum=[0.0, -3.0], maximum=[1.0, 3.0], priority=[1.0, 2.0]),
        step=1,
        previous_weights=None,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        scored=scored,
        scored_of_row=of_row,
        scores=scores,
    )


REWARDS = [[0.0, -3.0], [1.0, -3.0], [1.0, 3.0], [0.0, 1.0]]


def expected(mask, groups=("p", "p", "p", "p")) -> torch.Tensor:
    return saw.compute_advantage(
        torch.tensor(REWARDS), groups, mask, method="saw_gdpo", objectives=objectives(minimum=[0, -3], priority=[1, 2])
    ).tokens


def test_estimator_is_compute_advantage():
    mask = torch.ones(4, 3, dtype=torch.int64)
    keys = [f"p_{i}_0" for i in range(4)]
    with rewards_of_step(step_of(REWARDS, keys, [{}] * 4)) as step:
        tokens, returns = estimate(torch.zeros(4, 3), mask, config={}, index=np.array(["p"] * 4, dtype=object))
    torch.testing.assert_close(tokens.float(), expected(mask))
    assert returns is tokens
    assert step.advantage.weights.sum().item() == pytest.approx(1)


def test_padding_and_earlier_outputs_change_nothing():
    rewards = [REWARDS[0], *REWARDS, [9.0, 9.0]]  # an earlier output of the first session, and padding
    keys = ["p_0_0", "p_0_1", "p_1_0", "p_2_0", "p_3_0", "padx_0_0"]
    tags = [{}] * 5 + [{"is_padding": True}]
    mask = torch.ones(6, 3, dtype=torch.int64)
    mask[0, 2] = 0
    mask[5] = 0
    index = np.array(["p"] * 5 + ["padx"], dtype=object)
    with rewards_of_step(step_of(rewards, keys, tags)) as step:
        tokens, _ = estimate(torch.zeros(6, 3), mask, config={}, index=index)
    plain = expected(torch.ones(4, 3))
    torch.testing.assert_close(tokens[1:5], plain)
    assert tokens[0].tolist() == [plain[0, 0].item()] * 2 + [0.0]
    assert tokens[5].tolist() == [0.0] * 3
    assert step.advantage.statistics.mean[0].item() == 0.5


def test_kl_penalty_in_the_reward_reaches_grpo():
    mask = torch.ones(4, 3, dtype=torch.int64)
    keys = [f"p_{i}_0" for i in range(4)]
    scores = torch.tensor(REWARDS).sum(dim=1)
    penalised = torch.zeros(4, 3)
    penalised[:, 2] = scores
    penalised[3] -= 0.5  # 1.5 over the tokens of the last sample
    with rewards_of_step(step_of(REWARDS, keys, [{}] * 4, scores, method="grpo")):
        tokens, _ = estimate(penalised, mask, config={}, index=np.array(["p"] * 4, dtype=object))
    reference = saw.compute_advantage(
        torch.tensor(REWARDS),
        ["p"] * 4,
        mask,
        method="grpo",
        objectives=objectives(priority=[1, 2]),
        penalty=torch.tensor([0, 0, 0, 1.5]),
    ).tokens
    torch.testing.assert_close(tokens.float(), reference)


PENALTY = torch.tensor([0.5, 0.25, 0.0, 2.0], dtype=torch.float64)  # KL of each sample, times its coefficient


def under(reading, method):
    """The samples' advantages with the settings of a table's row in a reading, called as by the trainer."""
    config = compose("experiment=toolrl", f"reading={reading}", f"saw.method={method}")
    settings = check_config(config)
    keys, mask = [f"p_{i}_0" for i in range(4)], torch.ones(4, 2, dtype=torch.int64)
    scores = torch.tensor(REWARDS, dtype=torch.float64).sum(dim=1)
    feels = config.algorithm.use_kl_in_reward and settings.feels_kl_in_reward
    step = replace(
        step_of(REWARDS, keys, [{}] * 4, scores if feels else None),
        settings=settings,
        objectives=objectives(name=settings.names, minimum=[0.0, -3.0]),
    )
    rewards = torch.zeros(4, 2, dtype=torch.float64)
    rewards[:, 1] = scores - (PENALTY if config.algorithm.use_kl_in_reward else 0.0)
    with rewards_of_step(step):
        estimate(rewards, mask, config={}, index=np.array(["p"] * 4, dtype=object))
    return step.advantage.samples.numpy()


def normalised(values):
    """The released code's group normalisation."""
    return (values - values.mean()) / (values.std(ddof=1) + 1e-6)


def test_grpo_as_released_takes_the_penalty_off_the_sum_of_the_rewards():
    """Kind: half of a reading. With the paper's profile the penalty applies to the mean, so it counts twice."""
    summed = np.array(REWARDS).sum(axis=1)
    np.testing.assert_allclose(under("as_released", "grpo"), normalised(summed - PENALTY.numpy()), atol=1e-9)
    half = normalised(summed / 2 - PENALTY.numpy())
    assert np.abs(under("as_released", "grpo") - half).max() > 0.1  # the two are far apart here
    np.testing.assert_allclose(under("controlled", "grpo"), normalised(summed), atol=1e-5)  # no penalty at all


@pytest.mark.parametrize("method", ["saw_grpo", "gdpo", "saw_gdpo", "mo_grpo", "random_grpo", "dvao"])
def test_no_other_method_feels_the_penalty_as_released(method):
    plain = saw.compute_advantage(
        torch.tensor(REWARDS), ["p"] * 4, torch.ones(4, 2), method=method, step=1,
        objectives=objectives(minimum=[0, -3]), options={"profile": "released", "seed": 1},
    )  # fmt: skip
    np.testing.assert_allclose(under("as_released", method), plain.samples, atol=1e-12)


def test_a_released_group_of_one_keeps_its_own_score_less_the_penalty():
    """Golden values have no penalty: a lone sample's advantage is its score, from which the penalty was subtracted."""
    found = saw.compute_advantage(
        torch.tensor([[1.0, 2.0]]), ["p"], torch.ones(1, 1), method="grpo", options={"profile": "released"},
        penalty=torch.tensor([0.5]),
    )  # fmt: skip
    assert found.samples.item() == pytest.approx(2.5, abs=1e-5)


def test_estimator_needs_the_trainer():
    with pytest.raises(RuntimeError, match=r"trainer\.v1\.trainer_mode=saw"):
        estimate(torch.zeros(1, 1), torch.ones(1, 1))


# ---------------------------------------------------------------- reward manager


@pytest.mark.parametrize(
    ("result", "score"),
    [
        ({"score": 5.0, "format": 1.0}, 5.0),
        ({"format": 1.0, "correctness": 2.0}, 3.0),
        ({"score": NAN, "format": 1.0, "correctness": NAN}, 1.0),
        ({"score": math.inf, "format": None, "correctness": -2.0}, -2.0),
        ({"score": NAN, "format": NAN, "correctness": NAN}, 0.0),
    ],
)
def test_the_scalar_score_stays_finite_and_the_objectives_untouched(result, score):
    fixed = finite_score(result, SETTINGS.names)
    assert fixed.pop("score") == score
    rewards = {name: NAN if value is None else value for name, value in result.items() if name != "score"}
    assert fixed == pytest.approx(rewards, nan_ok=True)


def test_plain_and_async_reward_functions():
    async def judged(**kwargs):
        return {"format": NAN, "correctness": 1.0}

    failures = Failures(SETTINGS.names)
    assert asyncio.iscoroutinefunction(with_finite_score(judged, failures))
    assert asyncio.run(with_finite_score(judged, failures)())["score"] == 1.0
    assert with_finite_score(lambda **kwargs: {"format": 1.0}, failures)()["score"] == 1.0
    assert with_finite_score(lambda **kwargs: 0.5, failures)() == 0.5


class _Tokenizer:
    """Decodes every response to the same turn."""

    def decode(self, ids, skip_special_tokens=True):
        return "<think> a b c </think>"


@pytest.mark.parametrize("has_info", [True, False])
def test_the_training_step_reaches_the_reward_function(has_info):
    seen = {}

    async def reward(extra_info, **kwargs):
        seen.update(extra_info)
        return {"format": 1.0, "correctness": NAN}

    manager = MultiRewardManager(compose("experiment=quickstart"), _Tokenizer(), reward)
    rows = {"data_source": ["rlla"], "reward_model": [{"ground_truth": ""}], "global_steps": [7]}
    rows |= {"extra_info": [{"index": 3}]} if has_info else {}
    data = DataProto.from_dict(
        tensors={
            "responses": torch.ones(1, 4, dtype=torch.int64),
            "attention_mask": torch.ones(1, 6, dtype=torch.int64),
        },
        non_tensors={key: np.array(value, dtype=object) for key, value in rows.items()},
    )
    result = manager.loop.run_until_complete(manager.run_single(data))  # the loop that verl gave it
    assert seen["global_step"] == 7
    assert seen.get("index") == (3 if has_info else None)
    assert result["reward_score"] == 1.0
    assert math.isnan(result["reward_extra_info"]["correctness"])


# ---------------------------------------------------------------- metrics and the group filter


def test_training_metrics_have_stable_names():
    advantage = saw.compute_advantage(
        torch.tensor(REWARDS), ["p"] * 4, torch.ones(4, 2), method="saw_gdpo", objectives=objectives(minimum=[0, -3])
    )
    metrics = training_metrics(advantage, SETTINGS.names)
    kinds = ["mean", "std", "min", "max", "cv", "weight", "proposed_weight", "zero_spread", "missing"]
    assert set(metrics) == {f"saw/{name}/{kind}" for name in SETTINGS.names for kind in kinds}
    assert metrics["saw/correctness/mean"] == -0.5
    assert metrics["saw/format/missing"] == 0


def test_validation_metrics_leave_missing_values_out():
    metrics = validation_metrics({"format": [1.0, None, 0.0], "correctness": [NAN, None, None]}, SETTINGS.names)
    assert metrics["saw-val/format/mean"] == 0.5
    assert metrics["saw-val/format/missing"] == 1
    assert metrics["saw-val/correctness/missing"] == 3
    assert math.isnan(metrics["saw-val/correctness/mean"])


@pytest.mark.parametrize(
    ("rewards", "spread"),
    [
        ([[1.0, 2.0], [1.0, 2.0]], False),
        ([[1.0, 2.0], [2.0, 1.0]], True),
        ([[1.0, NAN], [1.0, 5.0]], False),
        ([[NAN, NAN], [NAN, NAN]], False),
        ([[1.0, NAN]], False),
    ],
)
def test_has_spread(rewards, spread):
    assert has_spread(torch.tensor(rewards)) is spread
