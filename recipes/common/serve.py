"""Serves a checkpoint with vLLM during an evaluation."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

from saw.runs.process_tree import Job, JobFailed

#: Name of the checkpoint on the server.
SERVED = "checkpoint"
#: Time limit in seconds for the server to load the model.
SERVER_LIMIT = 1800


@contextmanager
def server(model: str, folder: Path, gpus: int, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Serve a model with vLLM while the block runs, one copy per GPU.

    Args:
        model (str): a Hugging Face folder or name.
        folder (Path): for the log.
        gpus (int): copies; 0 serves on the CPU.
        arguments (Sequence[str]): further options of ``vllm serve``.

    Yields:
        str: the address, ``http://127.0.0.1:PORT/v1``.

    Raises:
        JobFailed: if the server exits, or is not ready in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"TORCHDYNAMO_DISABLE": "1"} if gpus == 0 else {}  # on a CPU, compiling costs more than it saves
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *serve_arguments(model, port, gpus, arguments)]
    job = Job(command, folder, SERVER_LIMIT, environment, name="server")
    with job.running() as process:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + SERVER_LIMIT
        while not _healthy(address):
            if process.poll() is not None:
                raise JobFailed(f"the vLLM server ended with exit code {process.returncode}; {job.log_end()}")
            if time.monotonic() > deadline:
                raise JobFailed(f"the vLLM server was not ready after {SERVER_LIMIT} s; {job.log_end()}")
            time.sleep(1)
        yield f"{address}/v1"


def serve_arguments(model: str, port: int, gpus: int, arguments: Sequence[str]) -> list[str]:
    """The arguments after ``vllm``; the caller's options come last and override the others.

    By default vLLM takes missing sampling parameters from the model's ``generation_config.json``, which differs between
    checkpoints and base models; here it is ignored. Its end-of-reply tokens always apply.
    """
    command = ["serve", model, "--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--generation-config", "vllm"]
    if gpus > 1:
        command += ["--data-parallel-size", str(gpus)]
    if gpus == 0:
        command += ["--dtype", "float32", "--enforce-eager"]
        # vLLM 0.28.0 on a CPU crashes when a seeded request's prompt is split: "CPU Generator does not use offset".
        command += ["--no-enable-chunked-prefill"]
        command += ["--gpu-memory-utilization", "0.3", "--kv-cache-memory-bytes", str(2**30)]  # of the machine's memory
    return [*command, *arguments]


def _healthy(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False
