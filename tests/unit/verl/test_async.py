"""Mini-batches, prompts in flight and refusals: what differs in the asynchronous trainers."""

import json
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

import saw
from saw.machine import cluster
from saw.method.objective import Objective
from saw.verl import replay_buffer as buffer_module
from saw.verl import trainer as trainer_module
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from saw.verl.estimator import estimate
from saw.verl.names import MODES
from saw.verl.replay_buffer import BUFFERS, AllLost, MultiRewardReplayBufferAsync
from saw.verl.reward_ranges import RewardRanges
from saw.verl.trainer import BadReward, SAWSeparateAsyncTrainer, TooManyMissing
from saw.verl.weight_state import State
from tests.configs import composed_with
from tests.conftest import PLATFORM

NAN = math.nan
#: By parts of these names verl would sum, or take the least or the largest of, the metrics of mini-batches.
NAMES = ("sum_total", "minimal")
STEP = 3


class Rewards:
    """A reward function whose second objective rises with the step: from 10 times the step to 10 above."""

    @staticmethod
    def bounds(step: int) -> dict[str, tuple[float, float]]:
        return {NAMES[0]: (0.0, 1.0), NAMES[1]: (10.0 * step, 10.0 * step + 10)}


class Trainer(SAWSeparateAsyncTrainer):
    """verl's own step over given mini-batches, without workers."""

    def __init__(self, folder, method="saw_gdpo", max_missing=1.0, **options):
        objectives: dict[str, Any] = {name: {} for name in NAMES}
        section = {"method": method, "objectives": objectives, "options": options, "max_missing": max_missing}
        self.settings = Settings.model_validate(section)
        self._ranges = RewardRanges(self.settings, Rewards)
        self.config = OmegaConf.create(
            {
                "trainer": {"default_local_dir": str(folder), "resume_mode": "auto"},
                "data": {"train_batch_size": 4},
                "actor_rollout_ref": {"rollout": {"n": 2}},
                "algorithm": {"use_kl_in_reward": False},
            }
        )
        self.parameter_sync_step, self.global_steps, self.state = 2, STEP, State()
        self.train_dataloader_it, self.replay_buffer = None, SimpleNamespace()
        self._rollouts, self._reported, self._dataloader_before = {}, set(), None

    def do(self, monkeypatch, *mini_batches: list[dict], submitted: int = STEP) -> dict[str, float]:
        """One step over mini-batches, given as rewards of two samples each of two prompts; its metrics."""
        self.waiting = [(infos, submitted) for infos in mini_batches]
        self.monkeypatch = monkeypatch
        metrics: dict[str, float] = {}
        self.step(metrics, {})
        self.global_steps += 1
        return metrics

    def prepare_step(self):
        return {}

    def _step_once(self, metrics, timing_raw, sample_batch_size):
        infos, submitted = self.waiting.pop(0)
        data = list_of_dict_to_tensordict([{"extra_fields": {"reward_extra_info": {**info}}} for info in infos])
        scores = [torch.tensor([0.0] * row + [info.get("score", 0.0)]) for row, info in enumerate(infos)]
        data["rm_scores"] = torch.nested.as_nested_tensor(scores, layout=torch.jagged)
        self.monkeypatch.setattr(trainer_module.tq, "kv_batch_get", lambda **_: data)
        left = len(self.waiting)
        keys = [f"{left}p{row // 2}_{row % 2}_0" for row in range(len(infos))]
        batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{"global_steps": submitted} for _ in keys])
        batch = self._compute_old_log_prob(batch, metrics)
        return self._compute_advantage(batch, metrics)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Makes trainers, whose verl only calls the estimator."""

    def advantage(self, batch, metrics):
        index = [key.split("_")[0] for key in batch.keys]
        estimate(torch.zeros(len(batch), 2), torch.ones(len(batch), 2), config={}, index=index)
        return batch

    monkeypatch.setattr(PPOTrainer, "_compute_advantage", advantage)
    monkeypatch.setattr(trainer_module.PPOTrainerSeparateAsync, "_compute_old_log_prob", lambda self, batch, _: batch)
    return lambda **settings: Trainer(tmp_path, **settings)


def rows(first: list[float], second: list[float], **more: float) -> list[dict]:
    return [{NAMES[0]: a, NAMES[1]: b, **more} for a, b in zip(first, second, strict=True)]


FIRST = rows([0.0, 1.0, 1.0, 1.0], [30.0, 31.0, 32.0, 33.0], score=1.0)
SECOND = rows([1.0, 1.0, 0.0, 0.0], [39.0, 39.0, 40.0, 38.0], score=3.0)


def weights_of(infos: list[dict], **options) -> list[float]:
    """The method's result for one mini-batch."""
    rewards = torch.tensor([[info[name] for name in NAMES] for info in infos], dtype=torch.float64)
    objectives = [Objective(NAMES[0], minimum=0.0, maximum=1.0), Objective(NAMES[1], minimum=30.0, maximum=40.0)]
    return saw.compute_advantage(
        rewards, [0, 0, 1, 1], torch.ones(4, 2), method="saw_gdpo", objectives=objectives, options=options
    ).weights.tolist()


# ---------------------------------------------------------------- the metrics of a step


def test_the_metrics_of_a_step_are_of_all_of_its_mini_batches(trainer, monkeypatch):
    """Kind: verl merges by parts of names: it would sum one objective's weights and take the minimum of the other's."""
    metrics = trainer().do(monkeypatch, FIRST, SECOND)
    assert metrics["saw/sum_total/mean"] == 5 / 8
    assert metrics["saw/minimal/mean"] == (126 + 156) / 8
    assert (metrics["saw/minimal/min"], metrics["saw/minimal/max"]) == (30.0, 40.0)
    deviations = [value - 282 / 8 for value in (30, 31, 32, 33, 39, 39, 40, 38)]
    assert metrics["saw/minimal/std"] == pytest.approx(math.sqrt(sum(d * d for d in deviations) / 7))
    assert metrics["saw/sum_total/zero_spread"] == 3 / 4
    assert metrics["saw/minimal/missing"] == 0
    each = [weights_of(infos) for infos in (FIRST, SECOND)]
    for place, name in enumerate(NAMES):
        assert metrics[f"saw/{name}/weight"] == pytest.approx((each[0][place] + each[1][place]) / 2)
    assert sum(metrics[f"saw/{name}/weight"] for name in NAMES) == pytest.approx(1.0)
    assert metrics["saw/lost"] == 0


def test_mini_batches_count_by_their_samples_and_missing_values_in_none(trainer, monkeypatch):
    small = rows([NAN, NAN], [30.0, 35.0])
    made = trainer()
    made.config.data.train_batch_size = 2
    metrics = made.do(monkeypatch, FIRST, small)
    assert metrics["saw/sum_total/missing"] == 2
    assert metrics["saw/sum_total/mean"] == 3 / 4
    alone = weights_of(FIRST)
    assert metrics["saw/minimal/weight"] == pytest.approx((4 * alone[1] + 2 * 1.0) / 6)  # the small one has no other
    cv = trainer().do(monkeypatch, FIRST, FIRST)["saw/sum_total/cv"]
    assert metrics["saw/sum_total/cv"] == pytest.approx(cv)  # the small one has none


def test_what_the_judge_cost_is_summed_and_verl_s_score_is_of_the_whole_step(trainer, monkeypatch):
    made = trainer()
    unrated = rows([NAN, 1.0, 1.0, 1.0], [NAN, 31.0, 32.0, 33.0], score=0.0, judge_dollars=2.0, judge_seconds=9.0)
    priced = [{**info, "judge_dollars": 1.0, "judge_seconds": 1.0} for info in SECOND]
    metrics = made.do(monkeypatch, unrated, priced)
    assert metrics["judge/dollars"] == 12.0
    assert metrics["judge/seconds/max"] == 9.0
    monkeypatch.setattr(PPOTrainer, "_compute_metrics", lambda *_, **__: None)
    made._compute_metrics(SimpleNamespace(), metrics, {}, STEP, 0)
    assert metrics["critic/score/mean"] == pytest.approx(12 / 7)  # one of eight has no reward, verl's 0 for it is out


# ---------------------------------------------------------------- steps are counted as steps


def test_smoothing_counts_steps(trainer, monkeypatch):
    """Kind: an average that forgets twice as fast because a step has two mini-batches."""
    made = trainer(ema=0.5)
    first = made.do(monkeypatch, FIRST, FIRST)
    plain = weights_of(FIRST)
    assert first["saw/minimal/weight"] == pytest.approx(plain[1])
    assert made.state.weights == pytest.approx(plain)
    second = made.do(monkeypatch, SECOND, SECOND, submitted=STEP)
    once = 0.5 * plain[1] + 0.5 * weights_of(SECOND)[1]
    assert second["saw/minimal/weight"] == pytest.approx(once)
    assert made.state.weights[1] == pytest.approx(once)


def test_a_limit_of_change_is_per_step(trainer, monkeypatch):
    made = trainer(max_change=0.01)
    before = made.do(monkeypatch, FIRST, FIRST)["saw/minimal/weight"]
    after = made.do(monkeypatch, SECOND, SECOND)["saw/minimal/weight"]
    assert abs(after - before) == pytest.approx(0.01)


def test_random_weights_are_drawn_once_a_step(trainer, monkeypatch):
    made = trainer(method="random_gdpo", seed=7)
    drawn = []
    for _ in range(2):
        made.do(monkeypatch, FIRST, SECOND)
        each = [part.advantage.weights.tolist() for part in made._mini_batches]
        assert each[0] == each[1]
        drawn.append(each[0])
    assert drawn[0] != drawn[1]


def test_weights_of_mini_batches_stay_weights(trainer, monkeypatch):
    """Kind: rounding makes a mean of ones larger than 1, which the next step refuses."""
    made = trainer(ema=0.5)
    made.parameter_sync_step = 3
    made.config.data.train_batch_size = 6
    flat = rows([1.0] * 4, [30.0, 35.0, 33.0, 31.0])
    for _ in range(3):
        made.do(monkeypatch, flat, flat, flat)
        assert all(0 <= weight <= 1 for weight in made.state.weights)


# ---------------------------------------------------------------- the range of a reward


def test_a_reward_s_range_is_that_of_the_step_that_submitted_its_prompt(trainer, monkeypatch, caplog):
    """Kind: the schedule of the training step is used, so rewards of an earlier step seem to be below the minimum."""
    early = rows([0.0, 1.0, 1.0, 1.0], [20.0, 21.0, 22.0, 23.0])
    made = trainer()
    with caplog.at_level(logging.WARNING):
        made.do(monkeypatch, early, early, submitted=2)
    assert "above its stated maximum" not in caplog.text
    with pytest.raises(BadReward, match=r"'minimal' of 4 samples is 20; below its minimum 30"):
        made.do(monkeypatch, early, early, submitted=3)
    with caplog.at_level(logging.WARNING):
        trainer().do(monkeypatch, FIRST, SECOND, submitted=2)
    assert "'minimal' is 33, above its stated maximum 30" in caplog.text


def test_where_a_batch_has_prompts_of_several_steps_the_ranges_are_united():
    settings = Settings.model_validate({"method": "saw_gdpo", "objectives": {name: {} for name in NAMES}})
    ranges = RewardRanges(settings, Rewards)
    assert ranges.over([4, 2, 2]) == [(0.0, 1.0), (20.0, 50.0)]
    assert ranges.over([4]) == ranges.at(4)


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("saved", [False, True])
def test_a_stop_saves_nothing_and_names_the_checkpoint_to_go_on_from(trainer, monkeypatch, tmp_path, position, saved):
    """Prompts of this step have left the queue, and an earlier mini-batch has changed the weights."""
    if saved:
        (tmp_path / "global_step_1").mkdir()
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    made = trainer(max_missing=0.1)
    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", lambda self: pytest.fail("a checkpoint was saved"))
    batches = [FIRST, SECOND]
    batches[position] = rows([NAN, NAN, 1.0, 0.0], [30.0, 31.0, 32.0, 33.0])
    where = "global_step_1" if saved else "the start: there is no checkpoint"
    with pytest.raises(TooManyMissing, match=f"resumes from .*{where}"):
        made.do(monkeypatch, *batches)
    assert made.global_steps == STEP


# ---------------------------------------------------------------- prompts in flight


def test_how_many_samples_a_prompt_in_flight_has_outlives_steps_and_a_resume(trainer, tmp_path, monkeypatch):
    made = trainer()
    made._rollouts = {"waits": 3, "dropped": 5}
    monkeypatch.setattr(PPOTrainer, "on_step_begin", lambda self: None)
    monkeypatch.setattr(trainer_module.PPOTrainerSeparateAsync, "on_step_begin", lambda self: None)
    monkeypatch.setattr(trainer_module.tq, "kv_list", lambda partition: {"train": {"waits": {"is_prompt": True}}})
    made.on_step_begin()
    assert made._rollouts == {"waits": 3}
    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", lambda self: None)
    made._save_checkpoint()
    assert json.loads((tmp_path / f"global_step_{STEP}" / "saw_state.json").read_text())["rollouts"] == {"waits": 3}

    def load(self):
        self.global_steps = STEP

    monkeypatch.setattr(PPOTrainer, "_load_checkpoint", load)
    again = trainer()
    again._load_checkpoint()
    assert again._rollouts == {"waits": 3}


@pytest.fixture
def buffer() -> MultiRewardReplayBufferAsync:
    stock = ReplayBufferAsync.__new__(ReplayBufferAsync)
    stock.__dict__.update(
        max_off_policy_threshold=2,
        max_off_policy_strategy="drop",
        filter_groups_metric=None,
        finished_keys={"train": {"old", "new"}, "val": set()},
        failure_keys={"train": {"old failed", "new failed"}, "val": set()},
        prompt_global_steps={"train": {"old": 1, "new": 4, "old failed": 1, "new failed": 4}, "val": {}},
        partitions={"train": {"new failed_0_0": {}}, "val": {}},
    )
    made = BUFFERS[type(stock)].from_stock(stock, NAMES, poll_interval=0.1)
    assert isinstance(made, MultiRewardReplayBufferAsync)
    return made


@pytest.mark.parametrize(
    ("strategy", "threshold", "stale"),
    [("drop", 2, {"old", "old failed"}), ("drop", 9, set()), ("wait", 2, set()), ("drop", None, set())],
)
def test_a_failed_group_is_trained_on_and_counted_unless_it_is_too_old(buffer, strategy, threshold, stale):
    """verl would silently draw another; if all fail, it would continue forever."""
    buffer.max_off_policy_strategy, buffer.max_off_policy_threshold = strategy, threshold
    reasons = buffer._terminal_eviction_reasons(5, "train")
    assert reasons[0] == stale
    assert reasons[2] == set()
    assert buffer._sampleable_terminal_keys("train", reasons) == {"old", "new", "old failed", "new failed"} - stale


def test_all_samples_lost_stop_an_asynchronous_training_as_well(buffer):
    found = buffer._select_prompt_uids("train", {"new failed", "new"}, 2)
    assert sorted(found[0]) == sorted(buffer.take_selected()) == ["new", "new failed"]
    buffer.partitions["train"] = {}
    with pytest.raises(AllLost):
        buffer._select_prompt_uids("train", {"new failed"}, 1)


def test_the_group_filter_is_that_of_the_synchronous_buffer(buffer, monkeypatch):
    monkeypatch.setattr(ReplayBuffer, "_dapo_filtered_keys", lambda *_: ({"new"}, {2.0: 1}))
    buffer._dapo_classification_cache = {"train": {"new": 2.0}}
    buffer.partitions["train"] = {"new_0_0": {}, "new_1_0": {}}
    rewards = [{NAMES[0]: 0.0, NAMES[1]: 2.0}, {NAMES[0]: 2.0, NAMES[1]: 0.0}]  # their sum is constant
    data = list_of_dict_to_tensordict([{"extra_fields": {"reward_extra_info": info}} for info in rewards])
    monkeypatch.setattr(buffer_module.tq, "kv_batch_get", lambda **_: data)
    assert buffer._dapo_filtered_keys("train")[0] == set()


# ---------------------------------------------------------------- what is refused, before Ray starts

MODE = "trainer.v1.trainer_mode"
SECTION = "trainer.v1.separate_async"
ENGINE = "actor_rollout_ref.rollout.checkpoint_engine.backend"
SYNC: dict[str, Any] = {}
COLOCATE = {MODE: "saw_colocate_async"}
SEPARATE = {
    MODE: "saw_separate_async",
    f"{SECTION}.parameter_sync_step": 2,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
    "actor_rollout_ref.rollout.nnodes": 1,
    "actor_rollout_ref.rollout.n_gpus_per_node": 1,
    ENGINE: "cpu" if PLATFORM == "cpu" else "nccl",
}
SWITCH = {f"{SECTION}.hybrid_rollout.enable_switch": True}


def quickstart(*changes: dict[str, Any]) -> DictConfig:
    """The quickstart's configuration, composed once, with changes."""
    return composed_with(("experiment=quickstart",), {key: value for each in changes for key, value in each.items()})


@pytest.mark.parametrize(
    "mode", [SYNC, COLOCATE, SEPARATE, SEPARATE | {"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 48}]
)
def test_every_mode_passes(mode):
    assert check_config(quickstart(mode)) is not None


@pytest.mark.parametrize(
    ("mode", "change", "message"),
    [
        (SYNC, {MODE: "colocate_async"}, r"trainer_mode is 'colocate_async'.*saw_colocate_async or saw_separate_async"),
        (COLOCATE, {"algorithm.adv_estimator": "grpo"}, "trainer_mode is 'saw_colocate_async'.*set both"),
        (
            COLOCATE,
            {"saw.method": "gradient_grpo"},
            "'gradient_grpo'.*samples of another policy.*trainer_mode to 'saw'",
        ),
        (SEPARATE, {"saw.options.informativeness": "gradient_norm"}, "'gradient_norm'.*samples of another policy"),
        (COLOCATE, {"trainer.v1.colocate_async.parameter_sync_step": 2}, r"colocate_async\.parameter_sync_step is 2"),
        (SYNC, {"trainer.v1.sync.parameter_sync_step": 2}, r"trainer\.v1\.sync\.parameter_sync_step is 2"),
        (SEPARATE, {"data.train_batch_size": 33}, "data.train_batch_size is 33; expected .* 2 x .* 16"),
        (
            SEPARATE,
            {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 48},
            r"actor\.ppo_micro_batch_size_per_gpu is 48; expected a divisor of the 64 samples",
        ),
        (
            SEPARATE,
            {"data.train_batch_size": 8, "actor_rollout_ref.actor.ppo_mini_batch_size": 4},
            r"rollout\.log_prob_micro_batch_size_per_gpu is 32; expected a divisor of the 16 samples",
        ),
        (
            SEPARATE,
            {
                "actor_rollout_ref.actor.use_kl_loss": True,
                "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 48,
            },
            r"ref\.log_prob_micro_batch_size_per_gpu is 48; expected a divisor of the 64 samples",
        ),
        (SEPARATE, {"actor_rollout_ref.rollout.nnodes": 0}, r"rollout\.nnodes is 0; expected at least 1"),
        (SEPARATE, {"actor_rollout_ref.rollout.n_gpus_per_node": 0}, r"rollout\.n_gpus_per_node is 0"),
        (SEPARATE, {ENGINE: "naive"}, "backend is 'naive'.*set it to"),
        pytest.param(SEPARATE, {ENGINE: "nccl"}, "'nccl'.*set it to cpu", marks=pytest.mark.cpu_platform),
        (SEPARATE, {"actor_rollout_ref.hybrid_engine": False}, r"hybrid_engine is False.*set it to True"),
        (SEPARATE, SWITCH, r"saw\.poll_interval is 0\.2.*set saw\.poll_interval to 2"),
    ],
)
def test_what_an_asynchronous_training_cannot_do_is_refused(mode, change, message):
    with pytest.raises(ConfigError, match=message):
        check_config(quickstart(mode, change))


@pytest.mark.parametrize(
    "right", [{"saw.poll_interval": 2.0}, {f"{SECTION}.hybrid_rollout.adaptive_switch_threshold": False}]
)
def test_switching_at_verl_s_own_interval_passes(right):
    assert check_config(quickstart(SEPARATE, SWITCH, right)) is not None


def test_the_rollout_s_own_gpus_are_counted():
    """Kind: a resource pool that is not counted, for which Ray would wait forever."""
    together = cluster.needed(quickstart(COLOCATE))
    apart = cluster.needed(quickstart(SEPARATE, {"actor_rollout_ref.rollout.n_gpus_per_node": 3}))
    assert (together.gpus, apart.gpus) == (1, 4)
    assert apart.cpus - together.cpus == 3 * 2


@pytest.mark.parametrize(("name", "stock"), MODES.items())
def test_a_mode_of_saw_s_is_one_of_verl_s(name, stock):
    from verl.trainer.ppo.v1 import get_trainer_cls

    kind = get_trainer_cls(name)
    assert kind.mode == stock
    assert issubclass(kind.__wrapped__, get_trainer_cls(stock))
