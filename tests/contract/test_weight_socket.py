"""The socket between a trainer and its vLLM: how verl 0.9.1 names it, and that both ends use the new name."""

import inspect
import os
from types import SimpleNamespace

import pytest
import ray
from verl.workers.rollout import base
from verl.workers.rollout import replica as verl_replica
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplicaRegistry, get_rollout_replica_class
from verl.workers.rollout.vllm_rollout import vllm_async_server, vllm_rollout
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

import saw.verl
from saw.verl.patches import weight_socket

JOB = "01000000"  # of the first job of every cluster


@pytest.fixture
def on_node(monkeypatch):
    """Both ends as verl creates them, on a node of a cluster."""

    def make(node: str, role: str | None = None) -> tuple[str, str]:
        context = SimpleNamespace(get_job_id=lambda: JOB, get_node_id=lambda: node)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)

        def adapter(self):
            self._pd_role = role
            self.zmq_handle = f"ipc:///tmp/rl-colocate-zmq-{JOB}-replica-0-rank-0.sock"

        monkeypatch.setattr(vllm_rollout.ServerAdapter, "__init__", adapter)
        monkeypatch.setattr(
            vllm_async_server.vLLMHttpServer, "__init__", lambda self: monkeypatch.setenv(weight_socket.JOB, JOB)
        )
        trainer = weight_socket.ServerAdapter().zmq_handle
        if role is None:
            weight_socket.HttpServer()
        else:
            vllm_async_server.vLLMHttpServer()
        assert os.environ[weight_socket.JOB]
        worker = SimpleNamespace(local_rank=0, model_runner=None)
        return trainer, vLLMColocateWorkerExtension._get_zmq_handle(worker)

    return make


def test_both_ends_have_the_same_name_and_no_other_cluster_has_it(on_node):
    first, second = "a" * 56, "b" * 56
    trainer, vllm = on_node(first)
    assert trainer == vllm
    assert "a" * 16 in trainer
    assert len(trainer.removeprefix("ipc://")) < 100  # the limit for a socket's name is 107
    assert trainer != on_node(second)[0] == on_node(second)[1]


def test_prefill_apart_from_decoding_is_left_to_verl(on_node):
    trainer, vllm = on_node("a" * 56, role="prefill")
    assert trainer == vllm


def test_verl_takes_them_from_its_registries_in_a_training_that_uses_saw(monkeypatch):
    stock = vllm_rollout.ServerAdapter, vllm_async_server.vLLMReplica
    monkeypatch.setattr(base, "_ROLLOUT_REGISTRY", dict(base._ROLLOUT_REGISTRY))
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    assert (get_rollout_class("vllm"), get_rollout_replica_class("vllm")) == stock
    monkeypatch.setenv(saw.verl.ACTIVE, "1")
    saw.verl._register_rollout(base)
    saw.verl._register_replica(verl_replica)
    assert get_rollout_class("vllm") is weight_socket.ServerAdapter
    replica = get_rollout_replica_class("vllm")
    assert replica is weight_socket.Replica
    assert "self.server_class.options(" in inspect.getsource(replica.launch_servers)


def test_verl_names_the_socket_by_rays_job_alone():
    adapter = inspect.getsource(vllm_rollout.ServerAdapter.__init__)
    assert "job_id = ray.get_runtime_context().get_job_id()" in adapter
    assert 'f"ipc:///tmp/rl-colocate-zmq-{job_id}-replica-{self.replica_rank}-rank-{local_rank}.sock"' in adapter
    server = inspect.getsource(vllm_async_server.vLLMHttpServer.__init__)
    assert f'os.environ["{weight_socket.JOB}"] = ray.get_runtime_context().get_job_id()' in server
