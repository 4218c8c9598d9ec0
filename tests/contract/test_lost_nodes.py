"""A Ray cluster of two nodes, without a training: where the task runner is, what a node sees, and how a loss shows.

Contract: Ray 2.60 lists actors with their job and node, marks a node as dead, and passes on the cause of an error. The
pipeline on two nodes is ``tests/e2e/test_two_nodes.py``.
"""

import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
from omegaconf import OmegaConf
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saw.runs import cluster_checks, task_runner
from saw.runs.task_runner import NodeLost, OnThisNode
from saw.verl.config import ConfigError

pytestmark = pytest.mark.slow
LIMIT = 60


@pytest.fixture(scope="module")
def nodes():
    """The cluster and its second node."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # where a Cluster writes its address, for every ray.init of the machine
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.delenv(name, raising=False)
        resources = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args={**resources, "include_dashboard": False})
        second = cluster.add_node(**resources)
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        try:
            yield cluster, second
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_another_node_is_asked_what_it_sees(nodes, tmp_path):
    (tmp_path / "here").touch()
    (other,) = cluster_checks._other_nodes()
    assert other["NodeID"] == nodes[1].node_id
    seen = cluster_checks._ask([other], [str(tmp_path / "here"), str(tmp_path / "nowhere")], "10.0.0.1:6379")
    assert seen == {other["NodeID"]: {str(tmp_path / "here")}}


def test_a_transfer_queue_is_seen_from_another_job_until_it_ends(nodes):
    @ray.remote(num_cpus=0)
    class Controller:
        def here(self) -> bool:
            return True

    name, namespace = cluster_checks.CONTROLLER
    assert not cluster_checks._in_use()
    controller = Controller.options(name=name, namespace=namespace).remote()
    assert ray.get(controller.here.remote())
    assert cluster_checks._in_use()
    ray.kill(controller)
    deadline = time.monotonic() + LIMIT
    while cluster_checks._in_use():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_error_of_a_worker_arrives_as_itself(nodes):
    """The start of a training shows the cause alone; each process on the way adds its traceback to the text."""

    @ray.remote(num_cpus=0)
    def worker() -> None:
        raise ConfigError("saw.options.gradient.layers has 7")

    @ray.remote(num_cpus=0)
    def task_runner() -> None:
        ray.get(worker.remote())

    with pytest.raises(ConfigError, match=r"(?s)task_runner\(\).* in worker") as ended:
        ray.get(task_runner.remote())
    assert (type(ended.value.cause), str(ended.value.cause)) == (ConfigError, "saw.options.gradient.layers has 7")


def test_the_loss_of_a_node_ends_a_training_that_would_wait_forever(nodes, tmp_path, monkeypatch):
    cluster, second = nodes
    monkeypatch.setattr(task_runner, "INTERVAL", 0.2)
    monkeypatch.setattr(task_runner, "GRACE", 0.5)

    @ray.remote(num_cpus=0)
    class Worker:
        def here(self) -> str:
            return ray.get_runtime_context().get_node_id()

    @ray.remote
    class TaskRunner:
        def run(self, config) -> None:
            there = NodeAffinitySchedulingStrategy(config.second, soft=False)
            worker = Worker.options(scheduling_strategy=there).remote()
            where = f"{ray.get_runtime_context().get_node_id()} {ray.get(worker.here.remote())}"
            Path(config.file).write_text(where)
            while True:
                time.sleep(1)

    file = tmp_path / "nodes"
    lost_at = []

    def lose() -> None:
        deadline = time.monotonic() + LIMIT
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)  # UsedNodes has seen the worker's node
        lost_at.append(time.monotonic())
        cluster.remove_node(second, allow_graceful=False)

    losing = threading.Thread(target=lose)
    losing.start()
    trainer = {"default_local_dir": str(tmp_path), "resume_mode": "auto"}
    config = OmegaConf.create({"second": second.node_id, "file": str(file), "trainer": trainer})
    runner = OnThisNode(TaskRunner).remote()
    with pytest.raises(NodeLost, match="There is no checkpoint"):
        runner.run.remote(config)
    assert time.monotonic() - lost_at[0] < LIMIT
    losing.join()
    assert file.read_text().split() == [ray.get_runtime_context().get_node_id(), second.node_id]
