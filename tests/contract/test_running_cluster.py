"""A start on a running Ray cluster, up to verl's task runner: what reaches it, and what must be in no log.

The cluster is one node, started in another folder and environment. Contract: verl 0.9.1 passes ``runtime_env`` to
``ray.init``; Ray 2.60 runs ``worker_process_setup_hook`` in every worker, and logs no function.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from saw.runs.process_tree import Job
from tests.conftest import python_path

#: Variable -> value; each must reach the workers, and those of the second table must be in no log.
LOGGED = {"VERL_MARK": "mark-of-verl", "VLLM_MARK": "mark-of-vllm", "NCCL_MARK": "mark-of-nccl"}
KEYS = {
    "GEMINI_API_KEY": "sk-judge-0123456789",
    "WANDB_API_KEY": "wandb-0123456789",
    "HF_TOKEN": "hf-0123456789",
    "https_proxy": "http://user:password-0123456789@proxy.invalid:1",
    "VLLM_API_KEY": "vllm-0123456789",
}
DRIVER = """
import json, os, sys
from pprint import pprint
import ray
from omegaconf import OmegaConf
from saw.runs.train import main, prepare_environment
prepare_environment()
from verl.trainer import main_ppo
from tests.configs import compose

@ray.remote
class Child:
    def environment(self):
        return dict(os.environ)

@ray.remote
class TaskRunner:
    def run(self, config):
        plain = OmegaConf.to_container(config, resolve=True)
        pprint(plain)
        child = Child.options(runtime_env={"env_vars": {"RANK": "0"}}).remote()  # as verl starts its workers
        seen = {"config": plain, "folder": os.getcwd(), "runner": dict(os.environ)}
        seen["child"] = ray.get(child.environment.remote())
        with open(os.path.join(config.trainer.default_local_dir, "seen.json"), "w") as file:
            json.dump(seen, file)

main_ppo.TaskRunnerV1 = TaskRunner
main(compose("experiment=tldr", "size=toy", *sys.argv[1:]))
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This process's environment, without the variables under test."""
    without = ("RAY_", "SAW_", *LOGGED, *KEYS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, **more}


@pytest.fixture(scope="module")
def cluster(monkeypatch_module):
    """Address and session folder of a Ray cluster of one node."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--include-dashboard=false"),
        *("--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}", f"--temp-dir={folder}"),
        *("--num-cpus=8", "--num-gpus=1", "--object-store-memory=100000000"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
        *(f"--metrics-export-port={free_port()}", f"--runtime-env-agent-port={free_port()}"),
    ]
    for name in [name for name in os.environ if name not in environment()]:
        monkeypatch_module.delenv(name)
    here = folder / "here"
    here.mkdir()
    monkeypatch_module.chdir(here)
    job = Job(command, folder / "job", 300, environment(), name="ray")
    with job.running():
        deadline = time.monotonic() + 60
        while "--block" not in job.log.read_text():  # printed at the end
            assert time.monotonic() < deadline, job.log_end()
            time.sleep(0.2)
        yield address, folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.slow
def test_a_running_cluster_gets_paths_and_variables_and_logs_no_key(cluster, tmp_path, toy_data, toy_model):
    address, session = cluster
    (tmp_path / "relative").mkdir()
    (tmp_path / "relative" / "model").symlink_to(toy_model)
    for file in toy_data:
        (tmp_path / "relative" / file.name).symlink_to(file)
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [
        *(sys.executable, "driver.py", "data.train_files=relative/train.parquet"),
        *("data.val_files=[relative/test.parquet]", "actor_rollout_ref.model.path=relative/model"),
        *("trainer.default_local_dir=${oc.env:SAW_RUNS,runs}/out", "trainer.logger=[file]"),
    ]
    variables = {"RAY_ADDRESS": address, "SAW_PLATFORM": "cpu", "SAW_RUNS": "relative", "PYTHONPATH": python_path()}
    started = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(**variables, **LOGGED, **KEYS),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    here = tmp_path / "relative"
    seen = json.loads((here / "out" / "seen.json").read_text())
    assert seen["folder"] != str(tmp_path)
    for process in ("runner", "child"):
        expected = {**LOGGED, **KEYS, "SAW_RUNS": str(here), "SAW_ACTIVE": "1", "VERL_PLATFORM": "cpu"}
        assert {name: seen[process].get(name) for name in expected} == expected
        assert seen[process]["VERL_FILE_LOGGER_PATH"] == str(here / "out" / "metrics.jsonl")
    config = seen["config"]
    assert config["data"]["train_files"] == str(here / "train.parquet")
    assert config["data"]["val_files"] == [str(here / "test.parquet")]
    assert config["actor_rollout_ref"]["model"]["path"] == str(here / "model")
    judge = config["reward"]["custom_reward_function"]["reward_kwargs"]["judge"]
    assert judge["cache"] == str(here / "judge_cache" / "verdicts.sqlite")
    assert "num_cpus=32" in started.stderr  # reported as left out

    logs = [path.read_text(errors="replace") for path in session.rglob("*") if path.is_file() and not path.is_symlink()]
    logs += [started.stdout, started.stderr]
    for value in LOGGED.values():
        assert any(value in log for log in logs)  # Ray logs what is in a runtime_env
    for name, value in KEYS.items():
        assert not any(value in log for log in logs), name
