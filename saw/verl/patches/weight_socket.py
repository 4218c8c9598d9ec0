"""A patch of verl 0.9.1: the socket for vLLM's weights is this training's own, and the trainer does not wait forever.

verl names the socket after Ray's job id, and the first job of every private Ray cluster has the same id. Of two
trainings on one machine, one may load the other's weights, or both hang. Here the name also has the id of the Ray node,
which no two clusters share.

verl starts a call in vLLM that receives the weights, and sends them without looking at that call. If a weight doesn't
fit, or vLLM is killed, the trainer waits forever and the error is never shown. Here it looks every second whether the
call has ended. vLLM itself never ends a call if its engine's process is killed; here the server does. With tensor
parallelism only the first rank of a server knows the call; the others wait for its error to end the training.

Contract: ``tests/contract/test_weight_socket.py``.

verl loads this module when it looks up vLLM in its registries, see ``saw/verl/__init__.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import ray
import zmq
from ray.exceptions import RayActorError
from verl.workers.rollout.vllm_rollout import vllm_rollout
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

#: verl's variable from which a vLLM process takes the name of its socket.
JOB = "VERL_RAY_JOB_ID"
#: How long a process waits for the other before it looks whether the other is still there, in seconds.
WAIT = 1.0
STOPPED = "vLLM stopped before it had received all weights; see its messages above"
#: The call in vLLM that receives the weights. verl starts it, then creates the sender in the same asyncio task.
RECEIVING: ContextVar[ray.ObjectRef | None] = ContextVar("RECEIVING", default=None)


def job_on_node() -> str:
    """Ray's job id, and the node's random id, which both ends of a socket share."""
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_node_id()[:16]}"


class WatchedSocket:
    """What verl's sender uses of a socket. It waits for vLLM only as long as vLLM's call runs.

    Once the call has ended, sending and receiving raise its error, or a RuntimeError if it had none or its process is
    gone.
    """

    def __init__(self, socket: zmq.Socket, call: ray.ObjectRef):
        socket.sndtimeo = socket.rcvtimeo = int(WAIT * 1000)
        self._socket = socket
        self._call = call
        self.close = socket.close

    def send_pyobj(self, value: Any) -> None:
        self._while_vllm_receives(lambda: self._socket.send_pyobj(value))

    def recv(self) -> bytes:
        return self._while_vllm_receives(self._socket.recv)

    def _while_vllm_receives(self, operation: Callable[[], Any]) -> Any:
        ended = False
        while True:
            try:
                return operation()
            except zmq.Again:
                # After the call's end once more: the last acknowledgement may have come just before it.
                if ended:
                    raise RuntimeError(STOPPED) from None
            ended = self._ended()

    def _ended(self) -> bool:
        if not ray.wait([self._call], timeout=0)[0]:
            return False
        try:
            ray.get(self._call)
        except RayActorError as error:
            raise RuntimeError(STOPPED) from error
        return True


class Sender(vllm_rollout.BucketedWeightSender):
    """verl's sender with such a socket, if this process has started vLLM's call: one process for each server has."""

    socket: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._call = RECEIVING.get()

    def _init_socket(self):
        super()._init_socket()
        if self._call is not None:
            self.socket = WatchedSocket(self.socket, self._call)

    def _cleanup(self):
        # With a process that is killed, Python removes the shared memory that the process used: this one's.
        with contextlib.suppress(FileNotFoundError):
            super()._cleanup()


# verl's adapter has no other place where the sender's class could be set.
vllm_rollout.BucketedWeightSender = Sender  # type: ignore[misc]


class ServerAdapter(vllm_rollout.ServerAdapter):
    """The trainer's end."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._pd_role is None:  # a rollout that splits prefill from decoding makes its servers elsewhere
            job = ray.get_runtime_context().get_job_id()
            self.zmq_handle = self.zmq_handle.replace(f"-zmq-{job}-replica-", f"-zmq-{job_on_node()}-replica-")

    async def _execute_method(self, method, non_block=False, *args, **kwargs):
        result = await super()._execute_method(method, non_block, *args, **kwargs)
        RECEIVING.set(result if non_block else None)
        return result


class HttpServer(vLLMHttpServer):
    """vLLM's end: its processes are started after this and inherit the variable."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.environ[JOB] = job_on_node()

    async def collective_rpc(self, *args, **kwargs):
        call = asyncio.ensure_future(super().collective_rpc(*args, **kwargs))
        try:
            while not (await asyncio.wait([call], timeout=WAIT))[0]:
                await self.engine.check_health()  # raises if the engine is dead
            return await call
        finally:
            call.cancel()


class Replica(vLLMReplica):
    """verl's replica with these servers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(HttpServer)
