"""A patch of verl 0.9.1: sends weights to vLLM through a socket that no other training on the machine uses.

verl names the socket after Ray's job id, and the first job of every private Ray cluster has the same id. Of two
trainings on one machine, one may load the other's weights, or both hang. Here the name also has the id of the Ray node,
which no two clusters share. Contract: ``tests/contract/test_weight_socket.py``.

verl loads this module when it looks up vLLM in its registries, see ``saw/verl/__init__.py``.
"""

from __future__ import annotations

import os

import ray
from verl.workers.rollout.vllm_rollout import vllm_rollout
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

#: verl's variable from which a vLLM process takes the name of its socket.
JOB = "VERL_RAY_JOB_ID"


def job_on_node() -> str:
    """Ray's job id, and the node's random id, which both ends of a socket share."""
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_node_id()[:16]}"


class ServerAdapter(vllm_rollout.ServerAdapter):
    """The trainer's end."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._pd_role is None:  # a rollout that splits prefill from decoding makes its servers elsewhere
            job = ray.get_runtime_context().get_job_id()
            self.zmq_handle = self.zmq_handle.replace(f"-zmq-{job}-replica-", f"-zmq-{job_on_node()}-replica-")


class HttpServer(vLLMHttpServer):
    """vLLM's end: its processes are started after this and inherit the variable."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.environ[JOB] = job_on_node()


class Replica(vLLMReplica):
    """verl's replica with these servers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(HttpServer)
