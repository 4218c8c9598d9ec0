"""A reward that fails is a missing one, and a sample that is lost on the way is counted: in training and validation."""

import asyncio
import functools
import json
import logging
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils as tu
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from saw.verl import agent_loops
from saw.verl import replay_buffer as buffer_module
from saw.verl import reward_manager as manager_module
from saw.verl import step_metrics as objective_metrics
from saw.verl import trainer as trainer_module
from saw.verl.agent_loops import AgentLoopDied, Watch
from saw.verl.config import ConfigError, Settings
from saw.verl.estimator import StepRewards
from saw.verl.names import FAILED, ROLLOUTS
from saw.verl.replay_buffer import AllLost, MultiRewardReplayBuffer, is_unknown
from saw.verl.reward_manager import Failures, MultiRewardManager, with_finite_score
from saw.verl.reward_ranges import RewardRanges, exact_minima
from saw.verl.reward_values import plain, reward_value
from saw.verl.trainer import BadReward, SAWTrainer, TooManyMissing
from saw.verl.transfer_queue import check_range, lost_samples
from saw.verl.weight_state import State
from tests.configs import compose

NAN = math.nan
NAMES = ("format", "correctness")
SETTINGS = Settings.model_validate(
    {"method": "saw_gdpo", "objectives": {"format": {"minimum": 0}, "correctness": {"minimum": -3}}}
)


# ---------------------------------------------------------------- a reward function that fails


class Tokenizer:
    """Decodes every response to the same turn, or to none."""

    def __init__(self, error: Exception | None = None):
        self.error = error

    def decode(self, ids, skip_special_tokens=True):
        if self.error is not None:
            raise self.error
        return "an answer"


def run_manager(reward: Callable[..., Any], tokenizer=None, **row: Any) -> dict[str, Any]:
    """The result that verl's agent loop gets for one sample."""
    manager = MultiRewardManager(compose(), tokenizer or Tokenizer(), reward)
    rows = {"data_source": "x", "reward_model": {"ground_truth": "1"}, "global_steps": 1, **row}
    data = DataProto.from_dict(
        tensors={
            "responses": torch.ones(1, 4, dtype=torch.int64),
            "attention_mask": torch.ones(1, 6, dtype=torch.int64),
        },
        non_tensors={key: np.array([value], dtype=object) for key, value in rows.items() if value is not None},
    )
    return manager.loop.run_until_complete(asyncio.wait_for(manager.run_single(data), timeout=20))


def raises(error: BaseException) -> Callable[..., Any]:
    def reward(**kwargs):
        raise error

    return reward


def raises_async(error: BaseException) -> Callable[..., Any]:
    async def reward(**kwargs):
        raise error

    return reward


@pytest.mark.parametrize("make", [raises, raises_async])
@pytest.mark.parametrize(
    "error",
    # StopIteration, of next() on an empty list, never leaves a future; exit() would end the reward worker
    [KeyError("format"), AssertionError(), StopIteration(), TimeoutError(), RecursionError(), SystemExit(1)],
)
def test_an_exception_in_a_reward_is_a_missing_reward(make, error, caplog):
    """Whatever it raises, the sample is kept, with the same keys as the others, and is marked as failed."""
    result = run_manager(make(error))
    assert result["reward_score"] == 0.0
    info = result["reward_extra_info"]
    assert set(info) == {*NAMES, "score", FAILED}
    assert info[FAILED] == 1.0
    assert all(math.isnan(info[name]) for name in NAMES)
    assert "the reward function failed" in caplog.text


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda **kwargs: None, "returned None"),
        (lambda **kwargs: [1.0, 2.0], "expected a dict"),
        (lambda **kwargs: {"format": "good", "correctness": 1.0}, "'format': it is 'good'"),
        (lambda **kwargs: {"format": "0.5", "correctness": 1.0}, "'format': it is '0.5'"),
        (lambda **kwargs: {"format": np.ones(2), "correctness": 1.0}, "'format'"),
        (lambda **kwargs: {"format": 1.0, "correctness": 1.0, "score": "high"}, "'high'"),
        (lambda **kwargs: {"format": 10**400, "correctness": 1.0}, "OverflowError"),
    ],
)
def test_what_is_no_reward_is_a_failure_too(reward, words, caplog):
    assert run_manager(reward)["reward_extra_info"][FAILED] == 1.0
    assert words in caplog.text


@pytest.mark.parametrize(
    "broken", [{"reward_model": None}, {"data_source": None}, {"tokenizer": Tokenizer(ValueError("no such token"))}]
)
def test_what_fails_around_the_reward_function_is_a_missing_reward(broken):
    """A row without a reference, an answer that cannot be decoded: verl would drop these samples as well."""
    result = run_manager(lambda **kwargs: {"format": 1.0, "correctness": 1.0}, **broken)
    assert result["reward_extra_info"][FAILED] == 1.0


def test_a_failure_has_the_keys_of_the_others_and_of_the_group_filter():
    config = compose("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc")
    failures = Failures(NAMES, manager_module.filter_metric(config))
    assert set(failures.result(KeyError())) == {*NAMES, "acc", "score", FAILED}
    wrapped = with_finite_score(lambda fail: 1 / 0 if fail else {"format": 1, "correctness": 2, "words": 7}, failures)
    passed, failed = wrapped(False), wrapped(True)
    assert passed == {"format": 1.0, "correctness": 2.0, "words": 7, "score": 3.0, FAILED: 0.0}
    assert set(failed) == {*passed, "acc"}
    assert manager_module.filter_metric(compose()) is None


def test_a_fault_is_logged_once_with_its_traceback(caplog):
    failures = Failures(NAMES)

    def badly_formatted(answer):
        return {"format": 1.0, "correctness": answer["value"] / answer["parts"]}

    wrapped = with_finite_score(badly_formatted, failures)
    for answer in ({}, {}, {"value": 1, "parts": 0}, {"value": 1, "parts": 0}, {}):
        assert wrapped(answer)[FAILED] == 1.0
    assert [type(record.exc_info[1]) for record in caplog.records] == [KeyError, ZeroDivisionError]
    assert "badly_formatted" in caplog.text


def test_a_cancelled_reward_is_no_failure():
    with pytest.raises(asyncio.CancelledError):
        run_manager(raises_async(asyncio.CancelledError()))


# ---------------------------------------------------------------- one place that makes a float of a reward

NUMBERS = [
    *(np.float32(0.5), np.float16(0.5), np.array(0.5), np.array([0.5]), np.array([[0.5]], dtype=object)),
    *(torch.tensor(0.5), torch.tensor([0.5], dtype=torch.bfloat16), torch.tensor(0.5, requires_grad=True)),
    *(Fraction(1, 2), Decimal("0.5"), 0.5),
]
TRUTHS = [np.bool_(True), True, np.int64(1), torch.tensor(True), np.array(True), np.uint8(1)]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_every_kind_of_number_is_a_reward(value):
    assert reward_value(value) == 0.5
    assert type(reward_value(value)) is float


@pytest.mark.parametrize("value", TRUTHS, ids=repr)
def test_truth_values_and_integers_are_rewards(value):
    assert reward_value(value) == 1.0
    assert type(reward_value(value)) is float


@pytest.mark.parametrize("value", [None, NAN, np.float32("nan"), torch.tensor(NAN), np.array(None)], ids=repr)
def test_missing_is_nan(value):
    assert math.isnan(reward_value(value))


@pytest.mark.parametrize("value", ["1", b"1", "", [1.0], {}, 1j, np.ones(2), torch.ones(0), np.str_("1")], ids=repr)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="expected a number, or None or NaN"):
        reward_value(value)


def test_others_stay_what_they_are():
    assert plain("text") == "text"
    assert plain(np.str_("text")) == "text"
    several = np.ones(3)
    assert plain(several) is several


@pytest.mark.parametrize("value", [*NUMBERS, *TRUTHS], ids=repr)
def test_a_reward_of_any_kind_of_number_is_a_python_float_in_verl(value):
    """verl and json get no numpy or torch scalars under any key; a bool stays a bool."""
    info = run_manager(lambda **kwargs: {"format": value, "correctness": 2, "score": value, "extra": value})
    rewards = info["reward_extra_info"]
    assert [type(rewards[key]) for key in ("format", "correctness", "score")] == [float] * 3
    assert type(rewards["extra"]).__module__ in ("builtins", "fractions", "decimal")
    assert type(info["reward_score"]) is float


def test_the_scalar_s_own_name_in_verl_does_not_get_in_twice():
    """verl adds "reward" to each sample's values itself; twice, its lists would not match the samples."""
    info = run_manager(lambda **kwargs: {"format": 1.0, "correctness": 2.0, "reward": 7.0})["reward_extra_info"]
    assert "reward" not in info
    assert info["score"] == 3.0


# ---------------------------------------------------------------- samples that never came back


@pytest.mark.parametrize(
    ("prompts", "expected", "lost"),
    [
        ("aaaabbbb", {"a": 4, "b": 4}, 0),
        ("aaab", {"a": 4, "b": 4}, 4),
        ("aaaa", {"a": 4, "b": 4}, 4),  # a prompt of which nothing is left
        ("aab", {"a": 2, "b": 5}, 4),  # a number of rollouts for each prompt
        ("aaaaab", {"a": 4, "b": 4}, 3),  # too many of one do not make up for another
        ("", {"a": 4}, 4),
    ],
)
def test_lost_samples(prompts, expected, lost):
    assert lost_samples(list(prompts), expected) == lost


KEYS = ["u1_0_0", "u1_1_0", "u1_1_1", "u2_0_0", "pad_0_0"]  # u1's second session has two outputs
TAGS: list[dict] = [{}, {}, {}, {}, {"is_padding": True}]
INFOS = [
    {"format": 1.0, "correctness": 2.0, "score": 3.0, FAILED: 0.0},
    {"format": NAN, "correctness": NAN, "score": 0.0, FAILED: 1.0},
    {"format": NAN, "correctness": NAN, "score": 0.0, FAILED: 1.0},
    {"format": 0.0, "correctness": NAN, "score": 0.0, FAILED: 0.0},
    {"format": NAN, "correctness": NAN, "score": 0.0, FAILED: 1.0},
]


class Trainer(SAWTrainer):
    """Without verl's parts."""

    def __init__(self, tmp_path, n=2, train_batch_size=2, max_missing=1.0, own_sampler=False):
        self.settings = SETTINGS.model_copy(update={"max_missing": max_missing})
        self.config = OmegaConf.create(
            {
                "trainer": {"default_local_dir": str(tmp_path), "log_val_generations": 9, "logger": ["console"]},
                "data": {"train_batch_size": train_batch_size},
                "actor_rollout_ref": {"rollout": {"n": n}},
                "algorithm": {"use_kl_in_reward": False},
            }
        )
        self.global_steps, self.parameter_sync_step, self.state = 3, 1, State()
        self.saved: list[int] = []
        self._ranges = RewardRanges(self.settings, None)
        self._rollouts, self._dataloader_before, self._val_texts = {}, {"position": 3}, ([], [])
        buffer = MultiRewardReplayBuffer.__new__(MultiRewardReplayBuffer)
        buffer.selected = []
        self.replay_buffer = SimpleNamespace() if own_sampler else buffer

    def _save_checkpoint(self):
        self.saved.append(self.global_steps)
        folder = trainer_module.Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir()

    def rewards(self, monkeypatch, keys=KEYS, tags=TAGS, infos=INFOS) -> tuple[StepRewards, dict[str, float]]:
        data = list_of_dict_to_tensordict([{"extra_fields": {"reward_extra_info": info}} for info in infos])
        scores = [torch.tensor([0.0] * length + [info["score"]]) for length, info in enumerate(infos)]
        data["rm_scores"] = torch.nested.as_nested_tensor(scores, layout=torch.jagged)
        monkeypatch.setattr(trainer_module.tq, "kv_batch_get", lambda **_: data)
        step = self._rewards(SimpleNamespace(keys=list(keys), tags=list(tags), partition_id="train"))
        return step, objective_metrics.sample_counts(objective_metrics.failed_samples(step.infos), step.lost)


@pytest.mark.parametrize("own_sampler", [False, True])
@pytest.mark.parametrize(
    ("n", "train_batch_size", "lost"),
    [(2, 2, 1), (4, 2, 5), (2, 3, 3)],  # u2 lacks one; both lack more; a third prompt has left no row
)
def test_a_step_counts_what_failed_and_what_was_lost(
    tmp_path, monkeypatch, n, train_batch_size, lost, own_sampler, caplog
):
    """There are three samples, one of which failed; padding and a session's earlier outputs do not count."""
    trainer = Trainer(tmp_path, n, train_batch_size, own_sampler=own_sampler)
    step, metrics = trainer.rewards(monkeypatch)
    assert (metrics["saw/failed"], metrics["saw/lost"]) == (1, lost)
    assert step.lost == lost
    assert step.missing_shares() == pytest.approx([(1 + lost) / (3 + lost), (2 + lost) / (3 + lost)])
    with caplog.at_level(logging.WARNING):
        trainer._stop_if_too_many_are_missing(step)
    assert f"{lost} of {3 + lost} samples were lost" in caplog.text


def test_nothing_is_lost_where_the_number_of_rollouts_differs(tmp_path, monkeypatch):
    """u1 should have two samples and u2 one, and all arrived; prompts that were filtered out do not count."""
    trainer = Trainer(tmp_path, n=8)
    trainer._rollouts = {"u1": 2, "u2": 1, "filtered": 8}
    trainer.replay_buffer.selected = ["u1", "u2"]
    assert trainer.rewards(monkeypatch)[1]["saw/lost"] == 0
    trainer._rollouts["u3"] = 5
    trainer.replay_buffer.selected = ["u2", "u3"]
    assert trainer.rewards(monkeypatch)[1]["saw/lost"] == 5


def test_rows_of_another_run_are_counted_by_the_configuration(tmp_path, monkeypatch):
    """verl can load rollouts from a file; their prompts were never submitted here."""
    trainer = Trainer(tmp_path)
    trainer._rollouts = {"elsewhere": 7}
    assert trainer.rewards(monkeypatch)[1]["saw/lost"] == 1


def test_the_trainer_remembers_how_many_samples_it_asked_for(tmp_path, monkeypatch):
    """As a column of the data, or added to the batch by the user's agent loop manager."""

    def submit(self, batch):
        if self.sets_number:
            tu.assign_non_tensor_stack(batch, ROLLOUTS, [3, 1])
        return len(batch)

    monkeypatch.setattr(trainer_base.PPOTrainer, "_submit_batch_to_rollout", submit)
    for column, sets_number, expected in (
        ([2, 5], False, {"u1": 2, "u2": 5}),
        (None, True, {"u1": 3, "u2": 1}),
        (None, False, {}),
    ):
        trainer = Trainer(tmp_path)
        trainer.sets_number = sets_number
        rows: dict[str, Any] = {"uid": np.array(["u1", "u2"], dtype=object), "dummy": torch.zeros(2, 1)}
        if column:
            rows[ROLLOUTS] = np.array(column, dtype=object)
        assert trainer._submit_batch_to_rollout(tu.get_tensordict(rows)) == 2
        assert trainer._rollouts == expected


@pytest.mark.parametrize(("max_missing", "stops"), [(0.5, False), (0.49, True)])
def test_lost_samples_count_as_missing(tmp_path, monkeypatch, max_missing, stops):
    """Four samples were requested: one is lost, one has no correctness, two are complete."""
    keys, infos = ["u1_0_0", "u1_1_0", "u2_0_0"], [INFOS[0], INFOS[0], INFOS[3]]
    trainer = Trainer(tmp_path, max_missing=max_missing)
    step, _ = trainer.rewards(monkeypatch, keys, [{}] * 3, infos)
    if not stops:
        trainer._stop_if_too_many_are_missing(step)
        assert trainer.saved == []
        return
    with pytest.raises(TooManyMissing, match=r"50\.0%.*'correctness' \(1 samples were lost"):
        trainer._stop_if_too_many_are_missing(step)
    assert trainer.saved == [2]


def test_a_step_without_any_reward_stops_with_a_checkpoint_whatever_is_allowed(tmp_path, monkeypatch):
    trainer = Trainer(tmp_path, max_missing=1.0)
    step, _ = trainer.rewards(monkeypatch, KEYS[:2], TAGS[:2], [INFOS[1], INFOS[1]])
    with pytest.raises(TooManyMissing, match=r"step 3: 100\.0%"):
        trainer._stop_if_too_many_are_missing(step)
    assert trainer.saved == [2]


def test_one_sample_a_prompt_stops_at_the_first_step_where_nobody_could_tell_before(tmp_path, monkeypatch):
    keys, infos = ["u1_0_0", "u2_0_0"], [INFOS[0], INFOS[3]]
    with pytest.raises(ConfigError, match=r"actor_rollout_ref\.rollout\.n is 1"):
        Trainer(tmp_path, n=1).rewards(monkeypatch, keys, [{}] * 2, infos)
    for trainer in (Trainer(tmp_path, n=4), Trainer(tmp_path, n=1)):
        trainer._rollouts = {"u1": 2, "u2": 2} if trainer.config.actor_rollout_ref.rollout.n == 1 else {}
        trainer.rewards(monkeypatch, keys, [{}] * 2, infos)  # samples were lost, which is no setting's fault


def test_a_judge_that_failed_for_some_samples_still_has_its_costs():
    judged = {f"judge_{name}": 2.0 for name in ("requests", "input_tokens", "output_tokens", "dollars", "cached")}
    failed = dict.fromkeys([*judged, "judge_seconds"], NAN) | {FAILED: 1.0}
    infos = [{FAILED: 1.0}, failed, {**judged, "judge_seconds": 3.0, FAILED: 0.0}]
    assert objective_metrics.judge_metrics(infos)["judge/requests"] == 2.0
    assert objective_metrics.judge_metrics(infos)["judge/seconds/mean"] == 3.0
    assert objective_metrics.judge_metrics(infos[:2]) == {}


# ---------------------------------------------------------------- rewards that can't be used


def judged(trainer: Trainer, monkeypatch, **wrong) -> None:
    """The trainer's check of a step's rewards, in which one sample is wrong; ``...`` leaves a key out."""
    bad = {key: value for key, value in {**INFOS[0], **wrong}.items() if value is not ...}
    keys, infos = ["u1_0_0", "u1_1_0", "u2_0_0"], [INFOS[0], bad, INFOS[0]]
    running = {"method": "saw_gdpo", "objectives": {"format": {"minimum": 0}, "correctness": {"minimum": "running"}}}
    trainer._ranges = RewardRanges(Settings.model_validate(running), None)
    look = SAWTrainer._rewards

    def look_at_these(batch):
        monkeypatch.setattr(trainer, "_rewards", functools.partial(look, trainer))
        return trainer.rewards(monkeypatch, keys, [{}] * 3, infos)[0]

    monkeypatch.setattr(trainer, "_rewards", look_at_these)
    monkeypatch.setattr(trainer_module.PPOTrainerSync, "_compute_old_log_prob", lambda *_: "went on")
    assert trainer._compute_old_log_prob(SimpleNamespace(), {}) == "went on"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"format": math.inf}, "'format' of .* samples is inf; expected a finite number"),
        ({"correctness": -math.inf}, "'correctness' of .* is -inf"),  # also where the minimum is running
        ({"format": -0.5}, r"'format' of .* is -0\.5; below its minimum 0; see saw\.objectives\.format\.minimum"),
        ({"correctness": 1e300}, "'correctness' of .* is 1e\\+300; expected .*at most"),
        ({"format": "good"}, "'format': it is 'good'"),
        ({"format": ...}, "'format', which the reward function does not return"),
        ({"score": math.inf}, "scalar score"),
    ],
)
def test_a_reward_that_cannot_be_used_stops_as_a_missing_one_does(tmp_path, monkeypatch, wrong, says):
    """Kind: an error in mid-training that loses the last steps. It saves the same checkpoint to resume from."""
    trainer = Trainer(tmp_path, max_missing=0.9)
    with pytest.raises(BadReward, match=rf"step 3: .*{says}.*The same command resumes from .*global_step_2"):
        judged(trainer, monkeypatch, **wrong)
    assert trainer.saved == [2]
    assert torch.load(tmp_path / "global_step_2" / "data.pt") == {"position": 3}


@pytest.mark.parametrize("right", [{"format": 0.0}, {"format": NAN}, {"format": None}, {"correctness": -1e30}])
def test_a_reward_at_its_minimum_or_missing_goes_on(tmp_path, monkeypatch, right):
    trainer = Trainer(tmp_path)
    judged(trainer, monkeypatch, **right)
    assert trainer.saved == []


@pytest.mark.parametrize("minimum", [0.1, 0.3, 0.7, -0.1, -0.7, 1e-9, 12.3])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_minimum_is_not_below_itself_in_another_precision(minimum, precision):
    """Kind: 0.7 in float32 is 0.69999999, which is below 0.7. The value below it in that precision is too low."""
    low = torch.tensor([minimum], dtype=torch.float64)
    reward = low.to(precision)
    if reward.item() == 0.0:
        pytest.skip("too small for this precision")
    matrix = torch.stack([reward.double(), torch.tensor([NAN], dtype=torch.float64)])
    exact = exact_minima(matrix, low)
    check_range(exact, ["style"], [minimum])
    assert exact[0].item() == max(minimum, reward.item())
    below = reward.double() - abs(minimum) * torch.finfo(precision).eps
    with pytest.raises(ConfigError, match=r"'style' of 1 samples is .* below its minimum"):
        check_range(exact_minima(below[None], low), ["style"], [minimum])


@pytest.mark.parametrize("value", [-math.inf, 0.0, -1e-9])
def test_a_precision_in_which_a_minimum_overflows_or_vanishes_allows_nothing(value):
    for minimum in (-1e6, 1e-9):
        low = torch.tensor([minimum], dtype=torch.float64)
        given = torch.tensor([[value]], dtype=torch.float64)
        assert torch.equal(exact_minima(given, low), given)


def test_a_reward_at_its_minimum_in_float32_goes_on(tmp_path, monkeypatch):
    low = {"method": "saw_gdpo", "objectives": {"format": {"minimum": 0.7}, "correctness": {"minimum": -3}}}
    trainer = Trainer(tmp_path)
    trainer._ranges = RewardRanges(Settings.model_validate(low), None)
    rounded = {**INFOS[0], "format": torch.tensor(0.7).item()}
    assert rounded["format"] < 0.7
    step, _ = trainer.rewards(monkeypatch, ["u1_0_0", "u1_1_0"], [{}, {}], [INFOS[0], rounded])
    assert step.rewards[:, 0].tolist() == [1.0, 0.7]


@pytest.mark.parametrize(
    ("resume_mode", "logger", "left"),
    [("disable", ["file"], 0), ("auto", ["file"], 2), ("resume_path", ["file"], 2), ("disable", ["console"], 2)],
)
def test_earlier_metrics_are_deleted_only_once_the_models_are_loaded(tmp_path, monkeypatch, resume_mode, logger, left):
    """Kind: a start that fails while it loads the model has thrown away what an earlier training logged."""
    trainer = Trainer(tmp_path)
    trainer.config.trainer.resume_mode, trainer.config.trainer.logger = resume_mode, logger
    for name in ("metrics.1.jsonl", "metrics.2.jsonl"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    trainer._delete_earlier_metrics()
    assert len(list(tmp_path.glob("metrics*"))) == left


def test_verl_s_mean_score_is_of_the_samples_that_have_a_reward(tmp_path, monkeypatch):
    """verl's scalar is 0 for a sample without rewards. If there is no such sample, verl's numbers are kept."""
    stock = {"critic/score/mean": 1.0, "critic/score/max": 3.0, "critic/score/min": 0.0, "critic/rewards/mean": 1.0}
    monkeypatch.setattr(
        trainer_module.PPOTrainerSync, "_compute_metrics", lambda self, batch, metrics, *_: metrics.update(stock)
    )
    right = {**INFOS[0], "score": -2.0}
    for infos, expected in (
        ([INFOS[0], INFOS[1], right], {"mean": 0.5, "max": 3.0, "min": -2.0}),  # u1's second session failed
        ([INFOS[0], INFOS[1], INFOS[3]], {"mean": 1.5, "max": 3.0, "min": 0.0}),  # a part of the rewards is enough
        ([INFOS[0], right, right], {"mean": 1.0, "max": 3.0, "min": 0.0}),
        ([INFOS[1], INFOS[1], INFOS[1]], {"mean": 1.0, "max": 3.0, "min": 0.0}),  # the step stops before
    ):
        trainer = Trainer(tmp_path)
        trainer._mini_batches = [trainer.rewards(monkeypatch, ["u1_0_0", "u1_1_0", "u2_0_0"], [{}] * 3, infos)[0]]
        metrics: dict[str, float] = {}
        trainer._compute_metrics(SimpleNamespace(), metrics, {}, 3, 0)
        assert metrics == stock | {f"critic/score/{what}": value for what, value in expected.items()}


# ---------------------------------------------------------------- who generates the samples


class Call:
    """A stand-in for a call to a Ray actor, with its answer: None if there is none yet."""

    def __init__(self, answer: Exception | bool | None):
        self.answer = answer


@pytest.fixture
def actors(monkeypatch):
    """Ray actors that give the configured answers, and count the calls."""
    monkeypatch.setattr(
        agent_loops.ray, "wait", lambda calls, num_returns, timeout: ([c for c in calls if c.answer is not None], [])
    )

    def get(call):
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    monkeypatch.setattr(agent_loops.ray, "get", get)

    def make(*answers):
        made = []
        for answer in answers:
            actor = SimpleNamespace(answer=answer, asked=0)

            def ask(actor=actor):
                actor.asked += 1
                return Call(actor.answer)

            actor.__ray_ready__ = SimpleNamespace(remote=ask)
            made.append(actor)
        return made

    return make


DEATH = ray.exceptions.RayActorError(error_msg="The actor died: out of\nmemory")


def test_workers_that_live_are_asked_again_and_busy_ones_are_not(actors):
    alive, busy = made = actors(True, None)
    watch = Watch(made)
    for _ in range(3):
        watch.look()
    assert (alive.asked, busy.asked) == (4, 1)
    Watch([]).look()


@pytest.mark.parametrize("position", [0, 1])
def test_a_worker_that_has_died_is_noticed(actors, position):
    answers: list = [None, None]
    answers[position] = DEATH
    with pytest.raises(AgentLoopDied, match="died, and its samples are lost: The actor died: out of memory"):
        Watch(actors(*answers)).look()


def test_the_buffer_looks_while_it_waits(actors, buffer, monkeypatch):
    waited = []
    monkeypatch.setattr(ReplayBuffer, "_wait_for_next_poll", lambda *arguments: waited.append(arguments) or 0.0)
    assert buffer._wait_for_next_poll("train", 0.0) == 0.0  # before the training has told who they are
    buffer.watch = Watch(actors(True, DEATH))
    with pytest.raises(AgentLoopDied):
        buffer._wait_for_next_poll("train", 0.0)
    assert len(waited) == 1


def test_a_training_watches_verl_s_workers_and_lets_other_managers_be(tmp_path, actors, monkeypatch):
    monkeypatch.setattr(trainer_module.PPOTrainerSync, "fit", lambda self, manager: None)
    (worker,) = actors(True)
    trainer = Trainer(tmp_path)
    trainer.fit(SimpleNamespace(agent_loop_workers=[worker]))
    assert worker.asked == 1
    trainer.fit(SimpleNamespace())
    trainer.replay_buffer.watch.look()
    Trainer(tmp_path, own_sampler=True).fit(SimpleNamespace(agent_loop_workers=[worker]))
    assert worker.asked == 1


@pytest.mark.parametrize("when", ["while it is waited for", "when it is given work"])
def test_a_dead_worker_ends_the_training_with_a_checkpoint_of_the_step_before(tmp_path, monkeypatch, when):
    """Kind: a wait that never ends. In validation the error is the same, and the last checkpoint is kept."""
    trainer = Trainer(tmp_path)
    slept = []
    monkeypatch.setattr(trainer, "on_sample_end", lambda: slept.append(1))

    def dies(self, *_):
        raise DEATH

    def step(self, *_):
        if when.startswith("while"):
            raise AgentLoopDied("an agent loop worker has died")
        self._submit_batch_to_rollout({})

    monkeypatch.setattr(trainer_base.PPOTrainer, "_submit_batch_to_rollout", dies)
    monkeypatch.setattr(trainer_module.PPOTrainerSync, "step", step)
    with pytest.raises(AgentLoopDied, match=r"step 3: an agent loop worker has died.*resumes from .*global_step_2"):
        trainer.step({}, {})
    assert trainer.saved == [2]
    assert slept


def test_where_the_trainer_s_workers_died_with_it_the_last_checkpoint_is_what_is_left(tmp_path, monkeypatch, caplog):
    trainer = Trainer(tmp_path)
    monkeypatch.setattr(trainer, "on_sample_end", lambda: None)

    def dies(*_):
        raise DEATH

    monkeypatch.setattr(trainer, "_save_checkpoint", dies)
    monkeypatch.setattr(trainer_base.PPOTrainer, "_submit_batch_to_rollout", dies)
    monkeypatch.setattr(trainer_module.PPOTrainerSync, "step", lambda self, *_: self._submit_batch_to_rollout({}))
    with pytest.raises(AgentLoopDied, match="resumes from the last checkpoint"):
        trainer.step({}, {})
    assert "no checkpoint of the previous step could be saved" in caplog.text


@pytest.mark.slow
def test_ray_says_that_an_actor_has_died(monkeypatch):
    """An asynchronous actor, as verl's workers are, busy with a task that never ends."""
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:

        @ray.remote(num_cpus=0)
        class Worker:
            async def work(self):
                await asyncio.sleep(1000)

        workers = [Worker.remote() for _ in range(2)]
        ray.get([worker.__ray_ready__.remote() for worker in workers])
        work = [worker.work.remote() for worker in workers]
        watch = Watch(workers)
        for _ in range(3):
            ray.wait(list(watch._calls), num_returns=2)
            watch.look()
        ray.kill(workers[1])
        ray.wait(work)
        with pytest.raises(AgentLoopDied):  # noqa: PT012
            for _ in range(2):  # a call may have been answered before its actor died; the next one was not
                ray.wait(list(watch._calls), num_returns=2, timeout=120)
                watch.look()
    finally:
        ray.shutdown()


# ---------------------------------------------------------------- the replay buffer


@pytest.fixture
def buffer() -> MultiRewardReplayBuffer:
    stock = ReplayBuffer.__new__(ReplayBuffer)
    made = MultiRewardReplayBuffer.from_stock(stock, NAMES, poll_interval=0.1)
    made.prompt_global_steps = {"train": {"u1": 1, "u2": 1}, "val": {}}
    made.partitions = {"train": {"u1_0_0": {}}, "val": {}}
    return made


def test_the_buffer_tells_which_prompts_it_took_also_those_without_rows(buffer):
    buffer._select_prompt_uids("train", {"u1", "u2"}, 2)
    assert sorted(buffer.take_selected()) == ["u1", "u2"]
    assert buffer.take_selected() == []
    buffer._select_prompt_uids("val", set(), 2)
    assert buffer.take_selected() == []


def test_all_samples_lost_stop_with_a_checkpoint(buffer, tmp_path, monkeypatch):
    buffer.partitions["train"] = {}
    trainer = Trainer(tmp_path)
    monkeypatch.setattr(trainer, "on_sample_end", lambda: None)
    monkeypatch.setattr(
        trainer_module.PPOTrainerSync, "step", lambda *_: buffer._select_prompt_uids("train", {"u1", "u2"}, 2)
    )
    with pytest.raises(TooManyMissing, match=r"step 3: all samples of 2 prompts were lost.*global_step_2"):
        trainer.step({}, {})
    assert trainer.saved == [2]
    with pytest.raises(AllLost):
        buffer._select_prompt_uids("train", {"u1"}, 1)


def test_the_group_filter_keeps_groups_whose_rewards_are_unknown(buffer, monkeypatch):
    """If dropped, they would be drawn again forever when a judge is down or a reward always fails."""
    groups = {
        "dead": [[NAN, NAN], [NAN, NAN]],
        "half": [[1.0, NAN], [1.0, NAN]],
        "flat": [[1.0, 2.0], [1.0, NAN]],
    }
    keys = {f"{uid}_{i}_0": row for uid, rows in groups.items() for i, row in enumerate(rows)}
    buffer.partitions["train"] = {key: {} for key in keys}

    def get(keys, **_):
        rows = [{"reward_extra_info": dict(zip(NAMES, rewards_of[key], strict=True))} for key in keys]
        return list_of_dict_to_tensordict([{"extra_fields": row} for row in rows])

    rewards_of = keys
    monkeypatch.setattr(buffer_module.tq, "kv_batch_get", get)
    assert buffer._with_spread("train", set(groups)) == {"dead", "half"}


@pytest.mark.parametrize(
    ("rewards", "unknown"),
    [([[NAN, 1.0], [NAN, 2.0]], True), ([[NAN, 1.0], [1.0, NAN]], False), ([[1.0, 1.0]], False), ([[NAN, NAN]], True)],
)
def test_is_unknown(rewards, unknown):
    assert is_unknown(torch.tensor(rewards)) is unknown


# ---------------------------------------------------------------- validation


def validate(trainer: SAWTrainer, infos: list[dict[str, Any]], expected: int, scores=None) -> dict[str, float]:
    """What verl's ``_validate`` passes for samples of one data source, one per prompt."""
    keys = list(dict.fromkeys(key for info in infos for key in info))
    columns = {"reward": scores or [info["score"] for info in infos]}
    columns |= {key: [info.get(key) for info in infos] for key in keys}
    uids = [f"u{i}" for i in range(len(infos))]
    counts = {("x", f"u{i}"): 1 for i in range(expected)}
    trainer._val_texts = (uids, uids)
    return trainer._val_metrics_update(["x"] * len(infos), uids, columns, [], expected_acc_counts=counts)


def test_validation_counts_failed_and_lost_and_is_not_biased(tmp_path, caplog):
    """Two complete samples, one failed, one without a verdict, and one lost: the means are over the two."""
    infos = [
        {"format": 1.0, "correctness": 2.0, "score": 3.0, FAILED: 0.0},
        {"format": 0.0, "correctness": 2.0, "score": 2.0, FAILED: 0.0},
        {"format": NAN, "correctness": NAN, "score": 0.0, FAILED: 1.0},
        {"format": NAN, "correctness": NAN, "score": 0.0, FAILED: 0.0},
    ]
    with caplog.at_level(logging.WARNING):
        metrics = validate(Trainer(tmp_path), infos, expected=5)
    assert (metrics["saw-val/failed"], metrics["saw-val/lost"]) == (1, 1)
    assert metrics["saw-val/format/mean"] == 0.5
    assert metrics["saw-val/format/missing"] == 2
    assert metrics["val-core/x/reward/mean@1"] == 2.5  # not 1.25
    assert metrics["val-aux/x/score/mean@1"] == 2.5
    assert not any(FAILED in name for name in metrics)
    assert "failed for 1 samples, and 1 were lost" in caplog.text


def test_validation_without_loss_says_so_and_is_silent(tmp_path, caplog):
    infos = [{"format": 1.0, "correctness": 2.0, "score": 3.0, FAILED: 0.0}]
    with caplog.at_level(logging.WARNING):
        metrics = validate(Trainer(tmp_path), infos, expected=1)
    assert (metrics["saw-val/failed"], metrics["saw-val/lost"]) == (0, 0)
    assert caplog.text == ""


@pytest.mark.parametrize("value", [*NUMBERS, *TRUTHS], ids=repr)
def test_validation_logs_generations_whatever_kind_of_number_a_reward_is(tmp_path, value):
    """An agent loop may bring its own rewards, which our reward manager has not seen."""
    infos = [{"format": value, "correctness": np.float32("nan"), "score": 1.0}]
    metrics = validate(Trainer(tmp_path), infos, expected=1)
    assert metrics["saw-val/format/mean"] == float(value)
    line = json.loads((tmp_path / "val_samples.jsonl").read_text())
    assert line["rewards"] == {"format": float(value), "correctness": None}


def test_text_in_validation_is_named(tmp_path):
    with pytest.raises(ConfigError, match="the reward 'format': it is 'good'"):
        validate(Trainer(tmp_path), [{"format": "good", "correctness": 1.0, "score": 1.0}], expected=1)
