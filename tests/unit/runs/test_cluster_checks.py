"""Before a training joins a running Ray cluster: what its nodes see, and that no other training is there."""

import itertools
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from saw.runs import cluster_checks
from saw.runs.cluster_checks import CONTROLLER, FOLDER, READ_EVERYWHERE, READ_HERE
from saw.runs.handover import INPUTS
from saw.verl.config import ConfigError
from tests.configs import composed_with

QUICKSTART = ("experiment=quickstart",)
CLUSTER = "10.0.0.1:6379"
CHECKPOINTS = {"trainer.save_freq": 1, "trainer.resume_mode": "auto"}


def node(number: int, gpus: float = 1.0, cpus: float = 4.0, alive: bool = True) -> dict:
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return {
        "NodeID": str(number),
        "Alive": alive,
        "Resources": resources,
        "NodeManagerHostname": f"node{number}",
        "NodeManagerAddress": f"10.0.0.{number}",
    }


class Cluster:
    """A stand-in for Ray's cluster; the training starts on node 1.

    Attributes:
        nodes (list[dict]): as Ray lists them.
        lacks (dict[str, str]): node -> the beginning of the paths that it does not have.
        actors (Iterator): the named actors at each look.
    """

    def __init__(self):
        self.nodes = [node(1), node(2)]
        self.lacks: dict[str, str] = {}
        self.actors = itertools.repeat([])
        self.connected = []

    def ask(self, nodes, paths, address):
        return {
            each["NodeID"]: {
                path
                for path in paths
                if os.path.exists(path) and not path.startswith(self.lacks.get(each["NodeID"], "nothing"))
            }
            for each in nodes
        }


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    stand_in = Cluster()
    monkeypatch.setenv("RAY_ADDRESS", CLUSTER)
    monkeypatch.setattr("ray.init", lambda **options: stand_in.connected.append(True))
    monkeypatch.setattr("ray.shutdown", lambda: stand_in.connected.append(False))
    monkeypatch.setattr("ray.nodes", lambda: stand_in.nodes)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "1"))
    monkeypatch.setattr("ray.util.list_named_actors", lambda all_namespaces: next(stand_in.actors))
    monkeypatch.setattr(cluster_checks, "_ask", stand_in.ask)
    clock = itertools.count(step=1.0)
    monkeypatch.setattr(cluster_checks, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: 0))
    return stand_in


@pytest.fixture
def configured(tmp_path):
    """A training with checkpoints, whose files exist here."""
    for name in ("model", "rewards.py", "prompt.txt"):
        (tmp_path / name).touch()
    own = {
        "actor_rollout_ref.model.path": f"{tmp_path}/model",
        "reward.custom_reward_function.path": f"file://{tmp_path}/rewards.py",
        "reward.custom_reward_function.reward_kwargs.judge.prompt": f"{tmp_path}/prompt.txt",
        FOLDER: f"{tmp_path}/out/checkpoints",
        **CHECKPOINTS,
    }
    return lambda changes=None: composed_with(QUICKSTART, {**own, **(changes or {})})


def test_a_cluster_that_shares_everything_is_joined_and_nothing_is_left_behind(cluster, configured, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    cluster_checks.check(configured())
    assert sorted(tmp_path.rglob("*")) == before
    assert cluster.connected == [True, False]


def test_a_training_with_its_own_ray_asks_nobody(cluster, configured, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    cluster_checks.check(configured())
    assert cluster.connected == []


@pytest.mark.parametrize(
    "key",
    [
        "actor_rollout_ref.model.path",
        "reward.custom_reward_function.path",
        "reward.custom_reward_function.reward_kwargs.judge.prompt",
    ],
)
def test_what_workers_read_must_be_on_every_node(cluster, configured, tmp_path, key):
    """Kind: a check that looks only at the machine where the training is started."""
    cluster.nodes += [node(3, gpus=0), node(4)]
    config = configured()
    path = str(cluster_checks.OmegaConf.select(config, key)).removeprefix("file://")
    cluster.lacks = {"2": path, "3": path}
    with pytest.raises(ConfigError) as refused:
        cluster_checks.check(config)
    assert str(refused.value) == (
        f"{key} is {path!r}, which does not exist on node2 (10.0.0.2), node3 (10.0.0.3); expected on every node of the "
        f"Ray cluster at {CLUSTER}"
    )
    assert cluster.connected == [True, False]


def test_every_path_that_is_read_is_checked_somewhere():
    """Kind: a key that is added to one list and forgotten in the other."""
    assert set(READ_HERE) <= set(INPUTS)
    assert set(INPUTS) <= set(READ_HERE) | set(READ_EVERYWHERE)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B-Instruct", "hdfs://a/model", "pkg://saw.verl.reward_functions"])
def test_what_is_no_path_is_not_asked_for(cluster, configured, name):
    cluster_checks.check(configured({"actor_rollout_ref.model.path": name}))


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_for_checkpoints_that_is_not_shared_is_refused(cluster, configured, tmp_path, exists):
    """Kind: ranks that write their parts of a checkpoint to their own disks, noticed only when one is resumed."""
    if exists:
        (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    cluster.lacks = {"2": f"{tmp_path}/out" if exists else f"{tmp_path}/.saw"}
    with pytest.raises(ConfigError, match=rf"{FOLDER} is '{tmp_path}/out/checkpoints', which node2 \(10.0.0.2\)"):
        cluster_checks.check(configured())


@pytest.mark.parametrize("changes", [{"trainer.save_freq": -1}, {"trainer.resume_mode": "disable"}])
def test_either_half_of_checkpoints_needs_the_shared_folder(cluster, configured, tmp_path, changes):
    cluster.lacks = {"2": f"{tmp_path}/.saw"}
    with pytest.raises(ConfigError, match=FOLDER):
        cluster_checks.check(configured(changes))


def test_without_checkpoints_it_is_only_said(cluster, configured, tmp_path, caplog):
    cluster.lacks = {"2": f"{tmp_path}/.saw"}
    with caplog.at_level(logging.WARNING):
        cluster_checks.check(configured({"trainer.save_freq": -1, "trainer.resume_mode": "disable"}))
    assert f"{FOLDER} is '{tmp_path}/out/checkpoints', which node2 (10.0.0.2)" in caplog.text


def test_nodes_on_which_nothing_runs_are_not_asked(cluster, configured, tmp_path):
    """Ranks run where accelerators are; reward and agent loop workers also on nodes without; none where no CPU is."""
    cluster.nodes += [node(3, gpus=0), node(4, gpus=0, cpus=0), node(5, alive=False)]
    cluster.lacks = {"3": f"{tmp_path}/.saw", "4": str(tmp_path), "5": str(tmp_path)}
    cluster_checks.check(configured())


def test_a_second_training_in_a_cluster_is_refused(cluster, configured):
    """Kind: verl finds the first training's TransferQueue by its name, and both take each other's samples."""
    name, namespace = CONTROLLER
    cluster.actors = itertools.repeat([{"name": name, "namespace": namespace}])
    with pytest.raises(ConfigError, match=f"another training is running on the Ray cluster at {CLUSTER}"):
        cluster_checks.check(configured())


def test_the_end_of_the_last_training_is_waited_for(cluster, configured):
    name, namespace = CONTROLLER
    ending = [{"name": name, "namespace": namespace}, {"name": "reward_loop_worker_0", "namespace": "x"}]
    cluster.actors = iter([ending, ending, ending[1:]])
    cluster_checks.check(configured())
    assert next(cluster.actors, None) is None


def test_verls_transfer_queue_still_has_that_name():
    """Contract: TransferQueue 0.1.11."""
    import transfer_queue.interface

    source = Path(transfer_queue.interface.__file__).read_text()
    name, namespace = CONTROLLER
    assert f'ray.get_actor("{name}", namespace="{namespace}")' in source
