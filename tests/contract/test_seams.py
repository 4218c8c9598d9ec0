"""What the plug-in relies on in verl: each test fails when upstream changes one of these."""

import ast
import inspect
import logging
import os
import re
import sys
import tomllib
from importlib import metadata
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
import transfer_queue as tq
import verl
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra._internal.utils import run_and_report
from packaging.requirements import Requirement
from tensordict import TensorDict
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.protocol import DataProto
from verl.trainer import main_ppo
from verl.trainer.ppo import ray_trainer
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.v1 import get_trainer_cls, replay_buffer, trainer_base
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers import engine_workers

import saw.verl.version
from saw.verl import ACTIVE, estimator
from saw.verl.config import ConfigError
from saw.verl.config_checks import check_config
from saw.verl.patches import vllm_log_level
from saw.verl.replay_buffer import MultiRewardReplayBuffer
from saw.verl.reward_manager import MultiRewardManager
from saw.verl.trainer import SAWTrainer
from saw.verl.transfer_queue import objective_matrix
from tests.configs import compose

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- versions and loading


def test_what_is_installed_and_pinned_is_among_the_versions():
    versions = saw.verl.version.VERSIONS
    assert metadata.version("verl") == verl.__version__
    assert verl.__version__ in versions or os.environ.get(saw.verl.version.ANY) == "1"
    for path in (ROOT / "requirements" / "cpu.txt", ROOT / "requirements" / "gpu.txt"):
        assert re.search(rf"^verl(\[vllm\])?=={re.escape(versions[-1])}$", path.read_text(), re.MULTILINE), path
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (allowed,) = [Requirement(line).specifier for line in extras["verl"] if Requirement(line).name == "verl"]
    known = ["0.8.0", "0.9.0", "0.9.1", "0.9.2", "0.10.0"]
    assert [each for each in known if each in allowed] == list(versions)


@pytest.mark.parametrize(
    ("found", "words"),
    [("0.8.0", "it has another trainer"), ("0.8.0.post1", "it has another trainer"), ("0.10.0", "installed; run")],
)
def test_another_version_is_refused_with_the_command_that_mends_it(monkeypatch, caplog, found, words):
    monkeypatch.setattr(verl, "__version__", found)
    monkeypatch.delenv(saw.verl.version.ANY, raising=False)
    refused = rf"verl 0\.9\.0 or 0\.9\.1, but verl {re.escape(found)} is installed"
    with pytest.raises(ImportError, match=refused) as error:
        saw.verl.version.check_version()
    assert words in str(error.value)
    assert "pip install verl==0.9.1" in str(error.value)
    assert caplog.text == ""  # kind: the message twice, where the error is shown
    monkeypatch.setenv(saw.verl.version.ANY, "1")
    saw.verl.version.check_version()
    assert found in caplog.text


def test_another_version_is_logged_where_verl_swallows_the_error(monkeypatch, caplog, tmp_path):
    (tmp_path / "plug_in.py").write_text("import saw.verl.version\nsaw.verl.version.check_version()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(verl, "__version__", "0.10.0")
    monkeypatch.delenv(saw.verl.version.ANY, raising=False)
    with pytest.raises(ImportError) as error:
        metadata.EntryPoint("plug_in", "plug_in", "verl.plugins").load()
    assert [record.getMessage() for record in caplog.records] == [str(error.value)]


def test_hydra_shows_a_refused_setting_without_a_traceback(capsys, monkeypatch):
    """Kind: verl's own command, whose traceback hid the message."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def refuse():
        check_config(compose("saw.method=nope"))

    with pytest.raises(SystemExit) as ended:
        run_and_report(refuse)
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("saw.method: method is 'nope'")
    assert "Traceback" not in said


def test_entry_points():
    assert [point.value for point in entry_points(group="verl.plugins") if point.name == "saw"] == ["saw.verl"]
    points = [point for point in entry_points(group="vllm.general_plugins") if point.name == "saw_cpu"]
    assert callable(points[0].load())


def test_verls_command_takes_the_plug_in_and_the_objectives():
    """With two overrides of verl's own configuration, the section equals that of this repository's command."""
    grpo, objectives = "actor_rollout_ref.rollout.n=4", "{format: {minimum: 0}, correctness: {minimum: -3}}"
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra_compose("ppo_trainer", overrides=["+plugin=saw", f"+saw.objectives={objectives}", grpo])
        shipped = hydra_compose("ppo_trainer", overrides=["+plugin=saw", "+objectives=toolrl"])
    assert check_config(config).names == ("format", "correctness")
    selected = (config.trainer.v1.trainer_mode, config.algorithm.adv_estimator, config.reward.reward_manager.name)
    assert selected == ("saw", "saw", "saw")
    assert shipped.saw == compose().saw


def test_registered_names():
    # each is loaded on first use: verl's registry holds a proxy
    assert get_trainer_cls("saw").__wrapped__ is SAWTrainer
    assert get_adv_estimator_fn("saw").__wrapped__ is estimator.estimate
    assert get_reward_manager_cls("saw").__wrapped__ is MultiRewardManager


def test_main_ppo_does_nothing_that_the_start_leaves_out():
    """saw.runs.train does the same instead: the device, one check, and the start of the v1 task runner."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(main_ppo.main))) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls} - {"hydra.main", "logger.warning"}
    needs = {"need_reference_policy", "need_critic"}
    assert names == {"auto_set_device", "validate_config", "run_ppo", *needs}
    assert "run_ppo(config, task_runner_class=TaskRunnerV1)" in inspect.getsource(main_ppo.main)


def test_verls_workers_assert_what_the_check_of_the_micro_batches_looks_at():
    source = inspect.getsource(engine_workers.ActorRolloutRefWorker.init_model)
    assert "assert self.config.actor.use_dynamic_bsz == self.config.rollout.log_prob_use_dynamic_bsz" in source
    for part, key in (("rollout", "log_prob_max_token_len"), ("actor", "ppo_max_token_len")):
        assert f"assert self.config.{part}.{key}_per_gpu is not None" in source
    for part, key in (("rollout", "log_prob_micro_batch_size"), ("actor", "ppo_micro_batch_size")):
        assert f"assert self.config.{part}.{key}_per_gpu is not None" in source


def test_main_ppo_calls_the_wrapped_validate_config(monkeypatch):
    monkeypatch.setenv(ACTIVE, "")  # so that it is unset again
    source = inspect.getsource(main_ppo.main)
    assert source.index("validate_config(") < source.index("run_ppo(")
    with pytest.raises(ConfigError, match="method"):
        main_ppo.validate_config(config=compose("saw.method=nope"), use_reference_policy=False, use_critic=False)
    assert os.environ[ACTIVE] == ""


@pytest.mark.parametrize("uses_saw", [True, False])
def test_only_a_training_that_uses_saw_is_checked_and_marked(monkeypatch, uses_saw):
    config = compose("experiment=quickstart")
    if not uses_saw:
        config.trainer.v1.trainer_mode, config.algorithm.adv_estimator = "sync", "grpo"
        config.saw.method = "nope"
    monkeypatch.setenv(ACTIVE, "")
    main_ppo.validate_config(config=config, use_reference_policy=False, use_critic=False)
    assert (os.environ[ACTIVE] == "1") == uses_saw


# ---------------------------------------------------------------- the trainer


def test_methods_that_the_trainer_overrides():
    counts = ["expected_acc_counts"] if saw.verl.version.VALIDATION_COUNTS_SAMPLES else []
    for name, parameters in {
        "_build_replay_buffer": ["self"],
        "_compute_advantage": ["self", "batch", "metrics"],
        "_compute_old_log_prob": ["self", "batch", "metrics"],
        "_init_resource_pool_mgr": ["self"],
        "_val_metrics_update": [
            "self",
            "data_sources",
            "sample_uids",
            "reward_extra_infos_dict",
            "sample_turns",
            *counts,
        ],
        "_maybe_log_val_generations": ["self", "inputs", "outputs", "scores"],
        "on_step_begin": ["self"],
        "_save_checkpoint": ["self"],
    }.items():
        assert list(inspect.signature(getattr(PPOTrainerSync, name)).parameters) == parameters


def test_rewards_are_there_before_the_log_probabilities_and_these_before_the_advantages():
    step = inspect.getsource(trainer_base.PPOTrainer._step_once)
    order = ["replay_buffer.sample", "_compute_reward_colocate", "_compute_old_log_prob", "_compute_advantage"]
    assert sorted(order, key=step.index) == order


def test_the_actor_s_worker_is_what_the_mapping_says():
    source = inspect.getsource(trainer_base.PPOTrainer._init_resource_pool_mgr)
    assert "self.role_worker_mapping[role] = ray.remote(ActorRolloutRefWorker)" in source
    assert "self.role_worker_mapping" in inspect.getsource(trainer_base.PPOTrainer._setup)


def test_mode_decides_the_buffer_by_the_attribute_that_we_set():
    source = inspect.getsource(trainer_base.PPOTrainer._build_replay_buffer)
    assert 'ReplayBuffer if self.trainer_mode == "sync" else ReplayBufferAsync' in source
    init = inspect.getsource(trainer_base.PPOTrainer.__init__)
    assert init.index("self.trainer_mode =") < init.index("self._build_replay_buffer()")


def test_stock_advantage_step_still_reaches_a_registered_estimator():
    """verl calls it with these arguments, and expects two tensors."""
    seen = {}

    def spy(**kwargs):
        seen.update(kwargs)
        return kwargs["response_mask"], kwargs["response_mask"]

    data = DataProto(batch=TensorDict({"token_level_rewards": torch.ones(2, 3), "response_mask": torch.ones(2, 3)}, 2))
    data.non_tensor_batch["uid"] = np.array(["a", "b"], dtype=object)
    registry = ray_trainer.core_algos.ADV_ESTIMATOR_REGISTRY
    registry["spy"] = spy
    try:
        ray_trainer.compute_advantage(data, adv_estimator="spy", config={})
    finally:
        del registry["spy"]
    assert set(seen) == {"token_level_rewards", "response_mask", "config", "index"}
    assert list(seen["index"]) == ["a", "b"]


def test_stock_gdpo_still_asks_for_what_the_default_trainer_does_not_fetch():
    """Why gdpo needs our trainer. When this fails, upstream has fixed it: update docs/papers.md."""
    gdpo = inspect.getsource(ray_trainer.core_algos.get_adv_estimator_fn("gdpo"))
    fetched = inspect.getsource(trainer_base.PPOTrainer._compute_advantage).split("\n\n")[0]
    assert '"prompts"' in gdpo or "'prompts'" in gdpo
    assert "prompts" not in fetched


def test_extra_fields_come_back_with_tolist():
    rows = [{"extra_fields": {"reward_extra_info": {"a": 1.0}}}, {"extra_fields": {"reward_extra_info": {"a": None}}}]
    matrix = objective_matrix(list_of_dict_to_tensordict(rows), ["a"])
    assert matrix[0, 0] == 1
    assert matrix[1, 0].isnan()


@pytest.mark.skipif(not saw.verl.version.VALIDATION_COUNTS_SAMPLES, reason="it averages neither")
def test_validation_metrics_skip_none_and_not_nan():
    """Why the trainer turns NaN into None."""
    for missing, finite in ((None, True), (float("nan"), False)):
        metrics = process_validation_metrics(["d", "d"], ["u", "u"], {"x": [1.0, missing]})
        mean = next(value for name, value in metrics["d"]["x"].items() if name.startswith("mean"))
        assert np.isfinite(mean) == finite


# ---------------------------------------------------------------- the replay buffer and the reward manager


def test_stock_group_filter_has_the_shape_that_we_refine():
    assert list(inspect.signature(replay_buffer.ReplayBuffer._dapo_filtered_keys).parameters) == [
        "self",
        "partition_id",
    ]
    source = inspect.getsource(replay_buffer.ReplayBuffer._dapo_filtered_keys)
    assert "classification_cache[uid] = float(values[0]) if" in source
    assert "else None" in source


class _Queue:
    """TransferQueue's two calls, on a dict."""

    def __init__(self, rows):
        self.rows = rows

    def kv_batch_get(self, keys, partition_id, select_fields):
        return list_of_dict_to_tensordict([{f: self.rows[key][f] for f in select_fields} for key in keys])


def _row(**rewards):
    score = float(sum(v for v in rewards.values() if v == v))
    return {
        "rm_scores": torch.tensor([0.0, score]),
        "extra_fields": {"reward_extra_info": {**rewards, "score": score}},
    }


@pytest.fixture
def buffer(monkeypatch):
    nan = float("nan")
    rows = {
        "trade_0_0": _row(a=0.0, b=1.0),  # constant sum, both objectives vary
        "trade_1_0": _row(a=1.0, b=0.0),
        "flat_0_0": _row(a=1.0, b=1.0),  # nothing varies
        "flat_1_0": _row(a=1.0, b=1.0),
        "hole_0_0": _row(a=1.0, b=nan),  # nothing varies among the present values
        "hole_1_0": _row(a=1.0, b=0.0),
        "wide_0_0": _row(a=0.0, b=0.0),  # the sum varies too
        "wide_1_0": _row(a=2.0, b=0.0),
    }
    queue = _Queue(rows)
    monkeypatch.setattr(replay_buffer.tq, "kv_batch_get", queue.kv_batch_get)
    monkeypatch.setattr(tq, "kv_batch_get", queue.kv_batch_get)
    stock = replay_buffer.ReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        refill_fn=lambda n: n,
        filter_groups_metric="reward" if saw.verl.version.FILTER_KNOWS_REWARD else "score",
        train_batch_size=4,
        gen_batch_size=1,
    )
    stock.partitions["train"] = {key: {} for key in rows}
    stock.finished_keys["train"] = {"trade", "flat", "hole", "wide"}
    return stock


def test_stock_drops_a_group_whose_objectives_trade_off(buffer):
    assert buffer._dapo_filtered_keys("train")[0] == {"trade", "flat", "hole"}


def test_ours_keeps_a_group_while_any_objective_has_spread(buffer):
    ours = MultiRewardReplayBuffer.from_stock(buffer, ("a", "b"), poll_interval=0.1)
    filtered, counts = ours._dapo_filtered_keys("train")
    assert filtered == {"flat", "hole"}
    assert counts == {2.0: 1, 1.0: 1}
    assert ours._dapo_filtered_keys("train")[0] == {"flat", "hole"}  # the verdict is kept at the next poll
    assert ours.poll_interval == 0.1


def test_naive_reward_manager_looks_at_the_function_it_is_given():
    source = inspect.getsource(NaiveRewardManager)
    assert "inspect.iscoroutinefunction(self.compute_score)" in source
    assert 'score = result["score"]' in source


# ---------------------------------------------------------------- too many missing rewards, samples, the judge


def test_a_step_begins_before_its_prompts_are_drawn():
    """on_step_begin remembers the data loader's state, for a checkpoint that repeats the step."""
    fit = inspect.getsource(trainer_base.PPOTrainer.fit)
    assert 0 < fit.index("self.on_step_begin()") < fit.index("self.step(")
    assert "next(self.train_dataloader_it)" in inspect.getsource(trainer_base.PPOTrainer._fetch_one_gen_batch)


def test_a_checkpoint_is_named_after_the_step_and_holds_the_dataloader_s_state():
    save = inspect.getsource(trainer_base.PPOTrainer._save_checkpoint)
    assert 'f"global_step_{self.global_steps}"' in save
    assert 'os.path.join(local_global_step_folder, "data.pt")' in save
    assert "torch.save(self.train_dataloader.state_dict(), dataloader_local_path)" in save


def test_validation_shows_its_texts_before_its_rewards():
    validate = inspect.getsource(trainer_base.PPOTrainer._validate)
    assert 0 < validate.index("self._maybe_log_val_generations(") < validate.index("self._val_metrics_update(")
    assert "inputs=sample_inputs, outputs=sample_outputs" in validate


def test_reward_functions_are_told_where_verl_serves_a_judge():
    source = inspect.getsource(NaiveRewardManager.run_single)
    assert '"reward_router_address": self.reward_router_address' in source
    assert '"reward_model_tokenizer": self.reward_model_tokenizer' in source


# ---------------------------------------------------------------- warnings in a process that imports vLLM


def test_vllm_leaves_warnings_alone(monkeypatch):
    from model_hosting_container_standards import logging_config
    from verl.workers.rollout.vllm_rollout import vllm_async_server  # noqa: F401

    assert any(name.startswith("vllm.entrypoints.serve.sagemaker") for name in sys.modules), "it is imported no more"
    root, handler = logging.getLogger(), logging.StreamHandler()
    before = root.level
    monkeypatch.setattr(root, "handlers", [handler])
    try:
        logging_config.configure_root_logger()  # as when it is imported
        assert (root.level, handler.level) == (logging.WARNING, logging.WARNING)
        for name in (vllm_log_level.LEVEL, vllm_log_level.NEXT):
            monkeypatch.delenv(name, raising=False)
        logging_config.configure_root_logger()
        assert (root.level, handler.level) == (logging.ERROR, logging.ERROR), "the patch is no longer needed"
    finally:
        root.setLevel(before)
