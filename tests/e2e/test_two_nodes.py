"""A training on two Ray nodes, with one rank, one vLLM and one judge each.

The stages of one test share a folder, because each start takes a minute: the driver is killed after a step; the same
command resumes, and a node is lost in the middle of a step; with the node back, it resumes again.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_prep import tldr
from data_prep.toy_tldr import write_posts
from recipes.quickstart import toy_model
from saw.report import read_history
from saw.runs.process_tree import JobFailed, TrainingJob, processes_of
from saw.verl.patches.forked_workers import py_executable
from tests.conftest import ROOT, python_path
from tests.e2e.two_nodes import PORT, Node, two_nodes, why_not

pytestmark = [pytest.mark.pipeline, pytest.mark.full, pytest.mark.cpu_platform]
#: Seconds for a start and its steps, for the end of a training after a node is lost, and for Ray to end its processes.
LIMIT, LOST_LIMIT, GONE_LIMIT = 420, 240, 60
STEPS = 3
JUDGE_PORT = 8901
KEY = "sk-two-nodes-6d1e"
JUDGE = "reward.custom_reward_function.reward_kwargs.judge"
#: What a training is started with and its nodes are not.
OF_THE_DRIVER = {"SAW_PLATFORM": "cpu", "JUDGE_URL": f"http://127.0.0.1:{JUDGE_PORT}/v1", "JUDGE_KEY": KEY}
#: Ray's own, and processes that it keeps in stock.
OF_RAY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
RANK_FILES = [f"{part}_world_size_2_rank_{rank}.pt" for part in ("model", "optim", "extra_state") for rank in (0, 1)]


class DriverKilled(Exception):
    """The test has killed it."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """A model that writes summaries, and posts."""
    writer = toy_model.make_toy_model(tmp_path_factory.mktemp("writer") / "model", task="tldr", steps=30)
    data = tmp_path_factory.mktemp("tldr")
    write_posts(data / "posts.jsonl", 80)
    tldr.prepare(data, source=str(data / "posts.jsonl"), tokenizer=str(writer), sizes=(32, 4))
    return writer, data


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    """Both nodes with Ray; the second has joined the first."""
    if reason := why_not():
        pytest.skip(reason)
    names = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"PYTHONPATH": python_path(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    base = tmp_path_factory.getbasetemp()
    with two_nodes(base / "nodes", [ROOT, base], environment) as (first, second):
        start(first, "--head", f"--port={PORT}", "--include-dashboard=false")
        start(second, f"--address={first.address}:{PORT}")
        yield first, second


def start(node: Node, *options: str) -> None:
    """Boot a node with Ray, and a judge's server that only this node can reach."""
    node.start_ray(*options)
    node.spawn(sys.executable, "-m", "recipes.tldr.stand_in_judge", "--port", str(JUDGE_PORT))


class Trainings:
    """Starts of one training, on either node.

    Args:
        folder (Path): the one that both share.
        inputs (tuple[Path, Path]): model and data.
    """

    def __init__(self, folder: Path, inputs: tuple[Path, Path]):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._inputs = inputs

    def on(self, node: Node, head: Node, *overrides: str) -> TrainingJob:
        model, data = self._inputs
        command = node.command(
            *("env", *(f"--unset={name}" for name in os.environ if name.lower().endswith("_proxy")), sys.executable),
            *("-m", "saw.runs.train", "experiment=tldr", "size=toy", "judge=server", f"{JUDGE}.api_key_env=JUDGE_KEY"),
            *("trainer.nnodes=2", "trainer.n_gpus_per_node=1", f"trainer.total_training_steps={STEPS}"),
            # one on each node; two storage units are also what saw/machine/cluster.py counts with
            *("reward.num_workers=2", "actor_rollout_ref.rollout.agent.num_workers=2"),
            "transfer_queue.backend.SimpleStorage.num_data_storage_units=2",
            *("data.max_prompt_length=192", "actor_rollout_ref.rollout.max_model_len=240"),
            *(f"data.train_files={data / 'train.parquet'}", f"data.val_files={data / 'test.parquet'}"),
            *(f"actor_rollout_ref.model.path={model}", f"trainer.default_local_dir={self.checkpoints}"),
            *(
                f"trainer.rollout_data_dir={self.folder / 'rollouts'}",
                f"{JUDGE}.cache={self.folder / 'verdicts.sqlite'}",
            ),
            *("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=1"),
            f"+ray_kwargs.ray_init.runtime_env.py_executable='{py_executable()}'",  # a node imports once, not ten times
            *overrides,
        )
        environment = {**node.environment, **OF_THE_DRIVER, "RAY_ADDRESS": f"{head.address}:{PORT}"}
        return TrainingJob(command, self.folder, LIMIT, environment, resume=True)

    def saved(self) -> int:
        """The step of the last complete checkpoint."""
        return int((self.checkpoints / "latest_checkpointed_iteration.txt").read_text())


def training_processes(node: Node) -> list[str]:
    """The names of a training's processes on a node, without what Ray itself runs."""
    names = [line.strip() for line in node.processes() if line.startswith(("ray::", "VLLM"))]
    return [name for name in names if not name.startswith(OF_RAY)]


def wait_until_gone(node: Node) -> None:
    deadline = time.monotonic() + GONE_LIMIT
    while left := training_processes(node):
        assert time.monotonic() < deadline, f"left on {node.name}: {left}"
        time.sleep(0.2)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.e2e.two_nodes import two_nodes
with two_nodes(Path(sys.argv[1]), [], dict(os.environ)) as nodes:
    for node in nodes:
        node.boot("sleep", "infinity")
    while not all("sleep infinity" in node.processes() for node in nodes):
        time.sleep(0.05)
    print(*(process for node in nodes for process in (node.network.pid, node.first.pid)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_of_the_nodes_if_the_test_is_killed(tmp_path):
    """No process, and so no namespace: none has a name that would keep it."""
    if reason := why_not():
        pytest.skip(reason)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "nodes")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    processes = [int(number) for number in killed.stdout.split()]
    assert len(processes) == 4
    deadline = time.monotonic() + GONE_LIMIT
    while left := [process for process in processes if psutil.pid_exists(process)]:
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.05)


def test_a_folder_that_is_not_shared_is_refused(nodes, inputs, tmp_path):
    first, _ = nodes
    run = Trainings(tmp_path, inputs).on(first, first, "trainer.default_local_dir=/tmp/own/checkpoints")
    with pytest.raises(
        JobFailed, match=r"trainer\.default_local_dir is '/tmp/own/checkpoints'.*node-b \(10\.77\.0\.2\)"
    ):
        run.follow(lambda step, metrics: None)
    assert not (first.folder / "tmp" / "own").exists()


def test_a_training_on_two_nodes_survives_its_driver_and_a_node(nodes, inputs, tmp_path):
    first, second = nodes
    trainings = Trainings(tmp_path, inputs)
    check_a_killed_driver(trainings, first, second)
    check_a_lost_node(trainings, first, second)
    second.connect()
    start(second, f"--address={first.address}:{PORT}")
    check_the_rest(trainings, first, second)


def check_a_killed_driver(trainings: Trainings, first: Node, second: Node) -> None:
    """The driver is on the second node, and dies after a step; the cluster is free again."""
    run = trainings.on(second, first)

    def kill(step: int, metrics: dict) -> None:
        for node in (first, second):
            running = "\n".join(training_processes(node))
            for kind in ("WorkerDict", "HttpServer", "RewardLoopWorker", "JudgeWorker", "AgentLoopWorker"):
                assert running.count(f"::{kind}") == 1, f"{kind} on {node.name}: {running}"
        # where the training was started, so that is where it writes
        assert "TaskRunner" in "\n".join(training_processes(second))
        for process in processes_of(json.loads((run.folder / "running.json").read_text())["run_id"]):
            process.kill()
        raise DriverKilled

    with pytest.raises(DriverKilled):
        run.follow(kill)
    for node in (first, second):
        wait_until_gone(node)
    assert trainings.saved() == 1
    assert (trainings.folder / "run.json").exists()
    files = {path.name for path in (trainings.checkpoints / "global_step_1" / "actor").iterdir()}
    assert files >= set(RANK_FILES)


def check_a_lost_node(trainings: Trainings, first: Node, second: Node) -> None:
    """The same command, on the first node, does a second step, and loses the second node in its third."""
    run = trainings.on(first, first)
    lost_at = math.inf

    def lose(step: int, metrics: dict) -> None:
        nonlocal lost_at
        assert step == 2
        assert "TaskRunner" in "\n".join(training_processes(first))
        second.lose()
        lost_at = time.monotonic()

    with pytest.raises(
        JobFailed, match=r"Ray lost node-b \(10\.77\.0\.2\).*same command resumes from \S+global_step_2"
    ):
        run.follow(lose)
    assert time.monotonic() - lost_at < LOST_LIMIT
    assert "\nsaw: the training ends" in run.log.read_text()  # that message, not a traceback
    wait_until_gone(first)
    assert trainings.saved() == 2


def check_the_rest(trainings: Trainings, first: Node, second: Node) -> None:
    """The same command does the third step, started on a new node."""
    run = trainings.on(second, first)
    run.follow(lambda step, metrics: None)
    assert run.faults() == []
    history = read_history(run.metrics)
    assert history.steps == (1, 2, 3)
    assert history.objectives == ("quality", "conciseness")
    for name in history.objectives:
        assert history.of(name, "missing") == (0,) * STEPS  # each judge had the key
    assert all(map(math.isfinite, history.columns["actor/grad_norm"]))
    assert max(history.columns["actor/grad_norm"]) > 0
    assert max(history.columns["training/rollout_probs_diff_max"]) < 1e-3  # both vLLMs have the trainer's weights
    assert all(asked > 0 for asked in history.columns["judge/requests"])
    caches = {path.name for path in trainings.folder.glob("verdicts.sqlite*")} - {"verdicts.sqlite.owner"}
    assert len(caches) == 2, caches  # each node's judge has written its own
    prompts = [
        json.loads(line)["input"] for path in (trainings.folder / "rollouts").glob("*.jsonl") for line in path.open()
    ]
    assert len(set(prompts)) == 8 * STEPS  # no post twice, and none left out
    assert len(prompts) == 4 * 8 * STEPS
    for node in (first, second):
        for path in node.folder.rglob("*"):
            if path.is_file() and not path.is_socket() and not path.is_symlink():
                assert KEY.encode() not in path.read_bytes(), path
