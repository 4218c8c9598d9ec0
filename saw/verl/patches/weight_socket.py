"""A bend in verl 0.9.1: weights reach vLLM through a socket that no other training on the machine has.

verl names the socket by Ray's job id, and the first job of every Ray cluster of its own has the same one: of two
trainings started on one machine, a rollout takes the other's weights, or both wait for ever. Here the name has the
Ray node in it too, which no two clusters share. Contract: ``tests/contract/test_weight_socket.py``.

verl loads this module when it asks its registries for vLLM, see ``saw/verl/__init__.py``.
"""

from __future__ import annotations

import os

import ray
from verl.workers.rollout.vllm_rollout import vllm_rollout
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

#: verl's own variable, from which a vLLM process has the name of its socket.
JOB = "VERL_RAY_JOB_ID"


def job_on_node() -> str:
    """Ray's job id and the node's, which is random: both ends of a socket are on one node."""
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_node_id()[:16]}"


class ServerAdapter(vllm_rollout.ServerAdapter):
    """The trainer's end."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._pd_role is None:  # the servers of a rollout that splits prefill from decoding are made elsewhere
            job = ray.get_runtime_context().get_job_id()
            self.zmq_handle = self.zmq_handle.replace(f"-zmq-{job}-replica-", f"-zmq-{job_on_node()}-replica-")


class HttpServer(vLLMHttpServer):
    """vLLM's end: its processes are started after this and inherit the variable."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.environ[JOB] = job_on_node()


class Replica(vLLMReplica):
    """verl's replica with such servers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(HttpServer)
