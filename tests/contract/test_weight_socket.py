"""The socket between a trainer and its vLLM: how verl 0.9.1 names it, and that both ends use the new name.

A transfer ends with an error when vLLM stops: verl's own sender and receiver on real sockets, without Ray and vLLM.
"""

import asyncio
import gc
import inspect
import os
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import ray
import torch
import zmq
from ray.exceptions import ActorDiedError
from verl.utils.device import get_device_name
from verl.workers.rollout import base
from verl.workers.rollout import replica as verl_replica
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplicaRegistry, get_rollout_replica_class
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer, vllm_async_server, vllm_rollout
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.v1.engine.exceptions import EngineDeadError

import saw.verl
from saw.verl.patches import weight_socket

#: The tensors in a shared buffer outlive it when an error holds them.
pytestmark = pytest.mark.filterwarnings("ignore:.*SharedMemory.__del__:pytest.PytestUnraisableExceptionWarning")

JOB = "01000000"  # of the first job of every cluster
LIMIT = 20  # seconds, of which an unpatched transfer would wait all


@pytest.fixture(autouse=True)
def buffers_end_with_their_test():
    """Or one ends while a later test parses code; its error's traceback is parsed too, which Python 3.11 can't do."""
    yield
    gc.collect()


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


#: Buckets of 1 MiB hold one each.
WEIGHTS = {f"layer.{i}": torch.full((1024, 160), float(i)) for i in range(4)}


class Call:
    """Stands in for the ObjectRef of a call in vLLM, which runs in a thread."""

    def __init__(self, run):
        self.future = ThreadPoolExecutor(1).submit(run)

    def __await__(self):
        return asyncio.wrap_future(self.future).__await__()


def server(run):
    """Stands in for the handle of vLLM's server: the three methods that verl's adapter calls."""
    other = SimpleNamespace(remote=lambda *args: asyncio.sleep(0))
    call = SimpleNamespace(remote=lambda *args, **kwargs: Call(run))
    return SimpleNamespace(collective_rpc=call, clear_kv_cache=other, set_global_steps=other)


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr(weight_socket, "WAIT", 0.2)
    monkeypatch.setattr(ray, "wait", lambda calls, timeout: ([c for c in calls if c.future.done()], []))
    monkeypatch.setattr(ray, "get", lambda call: call.future.result())


@pytest.fixture
def transfer(no_ray, tmp_path):
    """``transfer(vllm)`` sends the weights to ``vllm(receive)``; ``receive(load)`` calls ``load`` with each name."""
    handle = f"ipc://{tmp_path}/weights.sock"

    def receive(load):
        def on_bucket(weights, is_last):
            ((name, weight),) = weights
            assert torch.equal(weight.cpu(), WEIGHTS[name])
            load(name)

        BucketedWeightReceiver(handle, torch.device(get_device_name()), use_shm=True).receive_weights(on_bucket)

    def transfer(vllm, has_server=True):
        adapter = object.__new__(weight_socket.ServerAdapter)
        adapter.config = SimpleNamespace(checkpoint_engine=SimpleNamespace(update_weights_bucket_megabytes=1))
        adapter.zmq_handle, adapter.use_shm = handle, True
        adapter._has_server, adapter.replica_rank, adapter.rollout_rank = has_server, 0, 0
        adapter.server_handle = server(lambda: vllm(receive))
        if not has_server:  # another process has started the call
            Call(lambda: vllm(receive))
        outcome: Future = Future()

        def update():
            try:
                outcome.set_result(asyncio.run(adapter.update_weights(iter(WEIGHTS.items()), global_steps=1)))
            except Exception as error:  # noqa: BLE001  given to the test
                outcome.set_exception(error)

        threading.Thread(target=update, daemon=True).start()  # pytest ends even if this thread never does
        return outcome.result(timeout=LIMIT)

    return transfer


@pytest.mark.parametrize("has_server", [True, False])
def test_weights_arrive_even_if_vllm_is_slow(transfer, has_server):
    received = []

    def vllm(receive):
        time.sleep(3 * weight_socket.WAIT)
        receive(lambda name: (time.sleep(2 * weight_socket.WAIT), received.append(name)))

    transfer(vllm, has_server)
    assert received == list(WEIGHTS)


class DoesNotFit(Exception):
    """vLLM's own error."""


def stop(error):
    raise error


@pytest.mark.parametrize(
    ("error", "raised"),
    [(DoesNotFit("layer.0"), DoesNotFit), (ActorDiedError(), RuntimeError)],
    ids=["error", "killed"],
)
@pytest.mark.parametrize("bucket", [None, 0, 1, 3], ids=lambda bucket: f"bucket {bucket}")
def test_a_transfer_fails_when_vllm_stops(transfer, bucket, error, raised):
    def vllm(receive):
        if bucket is None:  # before it connects
            stop(error)
        receive(lambda name: name == f"layer.{bucket}" and stop(error))

    with pytest.raises(raised, match="layer.0" if raised is DoesNotFit else "vLLM stopped"):
        transfer(vllm)


def test_a_transfer_fails_so_even_if_the_shared_memory_went_with_vllm(transfer, monkeypatch):
    create = bucketed_weight_transfer.create_shared_memory
    created = []
    monkeypatch.setattr(
        bucketed_weight_transfer, "create_shared_memory", lambda *args: created.append(create(*args)) or created[-1]
    )

    def killed(name):
        created[0].unlink()
        stop(ActorDiedError())

    with pytest.raises(RuntimeError, match="vLLM stopped"):
        transfer(lambda receive: receive(killed))


def test_a_transfer_fails_when_vllm_returns_without_the_weights(transfer):
    with pytest.raises(RuntimeError, match="vLLM stopped"):
        transfer(lambda receive: None)


@pytest.mark.parametrize("waits", [1, 2])
def test_an_acknowledgement_that_came_just_before_the_call_ended_counts(no_ray, waits):
    answers = [zmq.Again()] * waits + [b"received"]

    def recv():
        answer = answers.pop(0)
        return stop(answer) if isinstance(answer, zmq.Again) else answer

    call = Call(lambda: None)
    call.future.result()
    socket = weight_socket.WatchedSocket(SimpleNamespace(recv=recv, close=None), call)
    if waits == 1:
        assert socket.recv() == b"received"
    else:
        with pytest.raises(RuntimeError, match="vLLM stopped"):
            socket.recv()


def test_vllms_server_ends_a_call_when_the_engine_is_dead(monkeypatch):
    monkeypatch.setattr(weight_socket, "WAIT", 0.01)
    health = [None, None, EngineDeadError()]

    async def check_health():
        if error := health.pop(0):
            raise error

    async def collective_rpc(**kwargs):  # vLLM's: nothing ends it when the engine's process is killed
        await asyncio.Event().wait()

    serving = object.__new__(weight_socket.HttpServer)
    serving.engine = SimpleNamespace(check_health=check_health, collective_rpc=collective_rpc)
    with pytest.raises(EngineDeadError):
        asyncio.run(asyncio.wait_for(serving.collective_rpc("update_weights_from_ipc"), LIMIT))
    assert not health


def test_verl_sends_as_the_watched_socket_expects():
    used = set(re.findall(r"self\.socket\.(\w+)", inspect.getsource(bucketed_weight_transfer.BucketedWeightSender)))
    assert used == {"bind", "send_pyobj", "recv", "close"}
    execute = inspect.getsource(vllm_rollout.ServerAdapter._execute_method)
    assert "future = self.server_handle.collective_rpc.remote(" in execute
    assert "return future if non_block else await future" in execute
    update = inspect.getsource(vllm_rollout.ServerAdapter.update_weights)
    assert update.index("await self._execute_method(") < update.index("BucketedWeightSender(")
