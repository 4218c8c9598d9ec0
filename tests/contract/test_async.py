"""What SAW relies on in verl's asynchronous trainers: fails when upstream changes it, or fixes what we refuse."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from verl.checkpoint_engine import CheckpointEngineRegistry
from verl.checkpoint_engine import base as engines
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.v1 import replay_buffer, trainer_base, trainer_separate_async
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.utils import MetricsAggregator
from verl.utils.skip.rollout_skip import RolloutTqSkip
from verl.workers.rollout import replica
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

from saw.verl import trainer as trainer_module
from saw.verl import version
from saw.verl.config_checks import POLL_INTERVAL
from saw.verl.names import MODES
from saw.verl.patches import cpu_weights
from saw.verl.replay_buffer import BUFFERS
from saw.verl.trainer import SAWColocateAsyncTrainer, SAWSeparateAsyncTrainer, SAWTrainer
from tests.unit.verl.test_async import COLOCATE, SEPARATE, SYNC, quickstart

separate = pytest.mark.skipif(not version.SEPARATE_ASYNC, reason="this verl's separate_async is another, and refused")
KINDS = {
    "saw": SAWTrainer,
    "saw_colocate_async": SAWColocateAsyncTrainer,
    "saw_separate_async": SAWSeparateAsyncTrainer,
}


@pytest.mark.parametrize("settings", [SYNC, COLOCATE, pytest.param(SEPARATE, marks=separate)])
def test_verl_finds_what_it_looks_up_by_the_mode_s_name(settings, monkeypatch):
    """With our own name there, verl would use another section, one mini-batch per step, the wrong buffer, no queue."""
    config = quickstart(settings)
    name = config.trainer.v1.trainer_mode
    mode = MODES[name]
    trainer = KINDS[name](config)
    assert trainer.trainer_mode == mode
    assert trainer.parameter_sync_step == (2 if mode == "separate_async" else 1)
    stock = replay_buffer.ReplayBuffer if mode == "sync" else replay_buffer.ReplayBufferAsync
    assert type(trainer.replay_buffer) is BUFFERS[stock]
    assert trainer.replay_buffer.trainer_config == config.trainer.v1[mode]
    assert trainer.replay_buffer.poll_interval == 0.2
    skip = RolloutTqSkip.__new__(RolloutTqSkip)
    monkeypatch.setattr(RolloutTqSkip.__bases__[0], "__init__", lambda *_: None)
    skip.__init__(None, config)
    assert skip.parameter_sync_step == trainer.parameter_sync_step
    written = []
    monkeypatch.setattr(trainer_module.run_info, "write", lambda config, *_: written.append(config))
    monkeypatch.setattr(trainer_base.PPOTrainer, "on_init_end", lambda self: None)
    for kind in KINDS[name].__mro__[2:3]:
        monkeypatch.setattr(kind, "on_init_end", lambda self: None)
    trainer.total_training_steps = 1
    trainer.on_init_end()
    assert written[0].trainer.v1.trainer_mode == name  # run.json says what was set


@separate
def test_the_workers_of_an_asynchronous_trainer_stay_verl_s():
    """The trainer uses a worker that saves and restores its model; any other worker could not."""
    config = quickstart(SEPARATE)
    trainer = SAWSeparateAsyncTrainer(config)
    trainer._init_resource_pool_mgr()
    (worker,) = trainer.role_worker_mapping.values()
    kind = worker.__ray_metadata__.modified_class
    assert {"save_model_to_cpu", "restore_model_from_cpu"} <= set(dir(kind))


def test_verl_merges_metrics_by_parts_of_their_names():
    """Why a step's metrics overwrite verl's; see :mod:`saw.verl.mini_batches`."""
    merge = MetricsAggregator()
    for _ in range(2):
        merge.add_step_metrics({"saw/summary/weight": 0.75, "saw/minimal/mean": 1.0}, sample_count=4)
    assert merge.get_aggregated_metrics()["saw/summary/weight"] == 1.5
    assert "_step_once(iter_metrics" in inspect.getsource(trainer_base.PPOTrainer.step)


def test_prompts_are_tagged_with_their_step_and_so_are_their_samples():
    assert '"global_steps": self.global_steps' in inspect.getsource(trainer_base.PPOTrainer._submit_batch_to_rollout)
    from verl.trainer.ppo.v1 import agent_loop_tq

    assert '"global_steps": kwargs["global_steps"]' in inspect.getsource(agent_loop_tq)


def test_what_verl_s_asynchronous_buffer_throws_away():
    source = inspect.getsource(replay_buffer.ReplayBufferAsync._terminal_eviction_reasons)
    assert "set(self.failure_keys[partition_id])" in source
    assert "> self.max_off_policy_threshold" in inspect.getsource(replay_buffer.ReplayBufferAsync._stale_terminal_keys)


@separate
def test_a_request_that_a_server_refuses_is_no_failure():
    """A rollout taken out of service returns its requests; otherwise their groups would count as lost."""
    source = inspect.getsource(vLLMHttpServer)
    assert 'stop_reason="aborted"' in source[source.index("if self._rejecting:") :][:400]


# ---------------------------------------------------------------- what is refused


def test_verl_asserts_of_a_separate_rollout_what_is_checked_before_ray():
    source = inspect.getsource(PPOTrainerSeparateAsync.__init__)
    for words in (
        "train_batch_size == parameter_sync_step * ppo_mini_batch_size",
        "rollout.nnodes > 0",
        "rollout.n_gpus_per_node > 0",
        'checkpoint_engine.backend != "naive"',
    ):
        assert words in source


@separate
def test_without_hybrid_replicas_verl_fails():
    """When this fails, verl has fixed it, and actor_rollout_ref.hybrid_engine=False can be allowed."""
    source = inspect.getsource(PPOTrainerSeparateAsync._setup)
    assert "flush=True" in source
    with pytest.raises(TypeError, match="flush"):
        trainer_separate_async.logger.info("", flush=True)


@separate
def test_verl_calls_a_step_idle_that_waits_longer_than_the_poll_interval():
    assert inspect.signature(replay_buffer.ReplayBuffer.__init__).parameters["poll_interval"].default == POLL_INTERVAL
    idle = PPOTrainerSeparateAsync._step_had_idle
    for interval, expected in ((0.2, True), (POLL_INTERVAL, False)):
        trainer = SimpleNamespace(replay_buffer=SimpleNamespace(poll_interval=interval), _step_sample_wait_seconds=1.0)
        assert idle(trainer) is expected


def test_a_rollout_apart_holds_two_cpus_for_each_gpu():
    assert "max_colocate_count=2" in inspect.getsource(replica.RolloutReplica.init_standalone)


# ---------------------------------------------------------------- weights on a CPU


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.cpu_platform
def test_the_weights_of_a_step_s_beginning_stay_what_they_were(one_rank):
    """Kind: a copy to the CPU of what is there already is none, and the old policy is the one that has moved on."""
    model = torch.nn.Linear(2, 2)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    before = model.weight.full_tensor().clone()
    worker = DetachActorWorker.__new__(DetachActorWorker)
    worker._strategy_handlers, worker.config = None, OmegaConf.create({"actor": {"strategy": "fsdp2"}})
    worker.actor = SimpleNamespace(engine=SimpleNamespace(module=model))
    worker.save_model_to_cpu(0)
    with torch.no_grad():
        model.weight.add_(1.0)
    worker.save_model_to_cpu(1)
    worker.restore_model_from_cpu(0)
    assert torch.equal(model.weight.full_tensor(), before)
    worker.restore_model_from_cpu(1)
    assert torch.equal(model.weight.full_tensor(), before + 1.0)


@pytest.mark.cpu_platform
def test_weights_reach_a_rollout_apart_from_the_trainer(monkeypatch):
    """As verl's manager calls the engine in every step: prepare, topology, group, send and receive, finalize."""
    monkeypatch.setattr(cpu_weights.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    new = CheckpointEngineRegistry.new
    trainer, rollout = new("cpu", bucket_size=1, is_master=True), new("cpu", bucket_size=1)
    topology = CheckpointEngineRegistry.get("cpu").build_topology
    for step in range(2):
        sent = {"a": torch.full((2, 3), float(step)), "b": torch.tensor([1, 2], dtype=torch.int64)}
        trains, rolls = topology(1, 1, [trainer.prepare(), rollout.prepare()])
        trainer.init_process_group(**{key: value[0] for key, value in trains.items()})
        rollout.init_process_group(**{key: value[0] for key, value in rolls.items()})

        async def transfer(sent=sent):
            await trainer.send_weights(iter(sent.items()), global_steps=0)
            return {name: weight async for name, weight in rollout.receive_weights(global_steps=0)}

        received = asyncio.run(transfer())
        assert received.keys() == sent.keys()
        assert all(torch.equal(received[name], weight) for name, weight in sent.items())
        rollout.finalize()
        trainer.finalize()
        assert not trainer._connected.check([cpu_weights.KEY])  # so the next weights can't be confused with these


def test_verl_s_manager_calls_what_the_engine_has():
    source = inspect.getsource(engines.CheckpointEngineManager)
    for words in ('["prepare"]', '["init_process_group"]', '["finalize"]', "build_topology("):
        assert words in source
    assert engines.CheckpointEngine.__abstractmethods__ <= set(vars(cpu_weights.CPUCheckpointEngine))
