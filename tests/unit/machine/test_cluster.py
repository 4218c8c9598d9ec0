"""Ray's CPUs and GPUs are counted before it starts: what is missing, and what single nodes have no room for."""

import math
import re

import pytest
import ray
from omegaconf import OmegaConf

from saw.machine import cluster
from saw.machine.cluster import STORAGE, UNITS, Available, check, needed, running
from saw.machine.nodes import Node
from tests.configs import composed_with

QUICKSTART = ("experiment=quickstart",)
JUDGED = ("experiment=quickstart", "judge=verl", "reward.reward_model.model_path=x")
TABLE_1 = ("experiment=toolrl", "platform=gpu")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """A Ray cluster running on this machine must not affect the test."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)


def nodes(*cpus_and_gpus: tuple[float, float], own: bool = False) -> Available:
    found = tuple(Node(f"node{place}", *has) for place, has in enumerate(cpus_and_gpus))
    return Available("this machine" if own else "the Ray cluster at 10.0.0.1:6379", found, own)


@pytest.mark.parametrize(
    ("experiment", "changes", "cpus", "gpus"),
    [
        (QUICKSTART, {}, 3 + 1 + 1, 1),  # tests/e2e/test_pipeline.py trains with exactly this
        (QUICKSTART, {"trainer.n_gpus_per_node": 2}, 6 + 1 + 1, 2),
        (QUICKSTART, {UNITS: 8}, 3 + 8 + 1, 1),
        (QUICKSTART, {"transfer_queue.backend.storage_backend": "MooncakeStore"}, 3 + 0 + 1, 1),
        (JUDGED, {}, 3 + 3 + 1 + 1, 2),
        (TABLE_1, {}, 12 + 2 + 1, 4),
        (TABLE_1, {"trainer.n_gpus_per_node": 8, "trainer.nnodes": 2}, 48 + 4 + 1, 16),
        (TABLE_1, {UNITS: 1}, 12 + 1 + 1, 4),
    ],
)
def test_what_a_training_needs(experiment, changes, cpus, gpus):
    need = needed(composed_with(experiment, changes))
    assert (need.cpus, need.gpus) == (cpus, gpus)
    assert sum(need.parts.values()) == need.cpus


def test_the_exact_count_is_enough_and_one_less_is_refused():
    config = composed_with(TABLE_1)
    check(config, nodes((15, 4)))
    with pytest.raises(ValueError, match=r"needs 15 CPUs.*has 14.*num_data_storage_units \(now 2\)"):
        check(config, nodes((14, 4)))


@pytest.mark.parametrize(
    ("own", "remedy"), [(True, "ray_kwargs.ray_init.num_cpus=15"), (False, "ray start --num-cpus")]
)
def test_the_remedy_is_what_can_be_set_there(own, remedy):
    with pytest.raises(ValueError, match=remedy):
        check(composed_with(TABLE_1), nodes((2, 4), own=own))


def test_too_few_gpus_are_named_by_their_pools():
    config = composed_with(JUDGED)
    with pytest.raises(ValueError, match=r"needs 2 GPUs \(trainer: 1 x 1 \+ reward.reward_model: 1 x 1.*has 1"):
        check(config, nodes((99, 1)))


@pytest.mark.parametrize("experiment", ["quickstart", "study", "short_answers"])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_our_experiments_for_one_gpu_start_on_one(experiment, platform):
    """An H100 refused them at model load: verl's default is two GPUs per engine of vLLM."""
    check(composed_with((f"experiment={experiment}", f"platform={platform}")), nodes((16, 1)))


SEPARATE = {"trainer.v1.trainer_mode": "saw_separate_async"}
ENGINE = "actor_rollout_ref.rollout"


@pytest.mark.parametrize(
    ("experiment", "changes", "match"),
    [
        (QUICKSTART, {f"{ENGINE}.tensor_model_parallel_size": 2}, "2 GPUs .*divide the 1 GPUs.*parallel_size=1"),
        (TABLE_1, {f"{ENGINE}.tensor_model_parallel_size": 3}, r"3 GPUs .*divide the 4 GPUs \(1 x 4"),
        (
            TABLE_1,
            {f"{ENGINE}.tensor_model_parallel_size": 4, f"{ENGINE}.data_parallel_size": 2},
            "takes 8 GPUs .*tensor_model_parallel_size 4 x data_parallel_size 2.*divide the 4 GPUs",
        ),
        (TABLE_1, {f"{ENGINE}.pipeline_model_parallel_size": 8}, "pipeline_model_parallel_size 8"),
        (
            TABLE_1,
            SEPARATE | {f"{ENGINE}.nnodes": 1, f"{ENGINE}.n_gpus_per_node": 3, f"{ENGINE}.data_parallel_size": 2},
            "2 GPUs .*divide the 3 GPUs",
        ),
        (JUDGED, {"reward.reward_model.rollout.tensor_model_parallel_size": 2}, "reward_model.rollout takes 2 GPUs"),
    ],
)
def test_engines_that_do_not_divide_the_gpus_are_refused(experiment, changes, match):
    """Kind: verl asserts it after minutes, or leaves the rest of the GPUs without work."""
    with pytest.raises(ValueError, match=match):
        check(composed_with(experiment, changes), nodes((99, 16)))


@pytest.mark.parametrize("size", ["two", "2", "", 0, -2, None, 2.0, math.nan, True, [2]])
@pytest.mark.parametrize("name", cluster.PARALLEL)
@pytest.mark.parametrize(
    ("experiment", "place"), [(TABLE_1, ENGINE), (JUDGED, "reward.reward_model.rollout")], ids=["rollout", "judge"]
)
def test_a_size_of_an_engine_that_is_no_count_is_refused(experiment, place, name, size):
    """Kind: text was a TypeError; 0 and null passed, and verl would divide by them after minutes."""
    match = rf"{re.escape(f'{place}.{name} is {size!r}')}; expected a whole number of at least 1"
    with pytest.raises(ValueError, match=match):
        check(composed_with(experiment, {f"{place}.{name}": size}), nodes((99, 16)))


def test_engines_of_several_gpus_pass():
    check(composed_with(TABLE_1, {f"{ENGINE}.tensor_model_parallel_size": 2}), nodes((99, 4)))


TWO_NODES = {"trainer.n_gpus_per_node": 8, "trainer.nnodes": 2}


@pytest.mark.parametrize(
    "there",
    [
        ((27, 8), (26, 8)),
        ((64, 8), (64, 8), (64, 0)),  # and a node without GPUs
        ((64, 16),),  # both parts on one node
    ],
)
def test_nodes_that_have_room(there):
    check(composed_with(TABLE_1, TWO_NODES), nodes(*there))


@pytest.mark.parametrize(
    ("there", "match"),
    [
        (((99, 4), (99, 12)), "room for 1"),  # 16 GPUs, and not twice 8
        (((99, 8), (25, 8)), "room for 1"),  # CPUs enough, but not where the GPUs are
        (((99, 8), (99, 8), (0, 0)), "node2 has fewer than 2 CPUs.*required_node_resource"),
    ],
)
def test_nodes_without_room_are_found_although_the_sums_suffice(there, match):
    """Kind: Ray waits for ever for one node, while all of them together have enough."""
    with pytest.raises(ValueError, match=match):
        check(composed_with(TABLE_1, TWO_NODES), nodes(*there))


def test_a_head_without_cpus_is_no_fault_if_storage_units_stay_away_from_it():
    config = composed_with(TABLE_1, {**TWO_NODES, f"{STORAGE}.required_node_resource": "storage"})
    check(config, nodes((99, 8), (99, 8), (0, 0)))


def test_the_own_ray_has_what_it_is_told_or_what_the_machine_has(monkeypatch):
    told = cluster.available(composed_with(QUICKSTART, {"ray_kwargs.ray_init.num_cpus": 7}))
    assert (told.own, told.cpus, told.gpus) == (True, 7, 2)
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: 3)
    left = composed_with(QUICKSTART, {"ray_kwargs.ray_init.num_cpus": None, "ray_kwargs.ray_init.num_gpus": None})
    monkeypatch.setattr("ray._private.accelerators.get_all_accelerator_managers", lambda: set())
    found = cluster.available(left)
    assert (found.cpus, found.gpus) == (3, 0)


def test_a_running_cluster_is_asked(monkeypatch):
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "connect", asked.append)
    monkeypatch.setattr("ray.init", lambda **options: asked.append(options["address"]))
    monkeypatch.setattr("ray.shutdown", lambda: asked.append("shutdown"))
    dead = {"Alive": False, "NodeManagerHostname": "c", "Resources": {"CPU": 1, "GPU": 1}}
    living = [{"Alive": True, "NodeManagerHostname": name, "Resources": {"CPU": 4.0}} for name in "ab"]
    living[0]["Resources"]["GPU"] = 2.0
    monkeypatch.setattr("ray.nodes", lambda: [*living, dead])
    found = cluster.available(composed_with(QUICKSTART))
    assert found == Available("the Ray cluster at 10.0.0.1:6379", (Node("a", 4, 2), Node("b", 4, 0)), own=False)
    assert asked == ["10.0.0.1:6379", None, "shutdown"]


@pytest.mark.parametrize("given", [None, "127.0.0.1:1"])
def test_a_cluster_that_cannot_be_reached_is_named_by_its_key_and_at_once(monkeypatch, given):
    """Kind: an internal traceback, minutes later."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray tries it for minutes"))
    key = "RAY_ADDRESS" if given is None else "ray_kwargs.ray_init.address"
    with pytest.raises(ValueError, match=rf"^{key} is '127\.0\.0\.1:1', and no Ray cluster can be reached"):
        cluster.available(composed_with(QUICKSTART, {"ray_kwargs.ray_init.address": given}))


@pytest.mark.parametrize("error", [ConnectionError("no answer"), ray.exceptions.AuthenticationError("no token")])
def test_a_cluster_that_does_not_let_us_in_is_named_by_its_key(monkeypatch, error):
    def init(**_):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "connect", lambda address: None)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS is '10\.0\.0\.1:6379', and no Ray cluster .*no (answer|token)"):
        cluster.available(composed_with(QUICKSTART))


def test_several_clusters_on_this_machine_are_a_fault_of_the_address(monkeypatch):
    def find(temp_dir):
        raise ConnectionError("two clusters run")

    monkeypatch.setattr("ray._private.services.find_bootstrap_address", find)
    with pytest.raises(ValueError, match=r"RAY_ADDRESS is None; expected HOST:PORT.*two clusters run"):
        running(composed_with(QUICKSTART))


@pytest.mark.parametrize(
    ("variable", "given", "started_here", "address"),
    [
        (None, None, None, None),
        ("10.0.0.1:6379", None, None, "10.0.0.1:6379"),
        (None, "10.0.0.2:6379", None, "10.0.0.2:6379"),
        ("10.0.0.1:6379", "10.0.0.2:6379", None, "10.0.0.2:6379"),
        (None, None, "10.0.0.3:6379", "10.0.0.3:6379"),  # a `ray start` on this machine is joined without being named
        ("local", None, "10.0.0.3:6379", None),
        ("", None, None, None),
    ],
)
def test_which_cluster_is_joined(monkeypatch, variable, given, started_here, address):
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: started_here)
    config = composed_with(QUICKSTART, {"ray_kwargs.ray_init.address": given})
    assert running(config) == address


@pytest.mark.parametrize(
    ("variable", "given", "key"), [("ray://h:1", None, "RAY_ADDRESS"), (None, "h", "ray_init.address")]
)
def test_what_is_no_address_is_named_by_its_key(monkeypatch, variable, given, key):
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(ValueError, match=f"{key} is '{variable or given}'; expected HOST:PORT"):
        running(composed_with(QUICKSTART, {"ray_kwargs.ray_init.address": given}))


@pytest.mark.parametrize("key", [UNITS, "trainer.nnodes", "trainer.n_gpus_per_node"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "2"])
def test_a_count_that_is_none_is_named_by_its_key(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value!r}; expected a whole number"):
        needed(composed_with(QUICKSTART, {key: value}))


def test_every_shipped_size_is_counted_on_the_node_that_it_is_for():
    """Table 1's nodes have 64 CPUs by recipes/toolrl/slurm.sh; the key of the remedy is one that exists."""
    for gpus in (4, 8):
        config = composed_with(TABLE_1, {"trainer.n_gpus_per_node": gpus})
        check(config, nodes((64, 8), own=True))
        with pytest.raises(ValueError, match="Ray needs") as refused:
            check(config, nodes((1, 8), own=True))
        enough = math.ceil(needed(config).cpus)
        assert f"ray_kwargs.ray_init.num_cpus={enough}" in str(refused.value)
        for key in re.findall(r"(transfer_queue\.[\w.]*\w|trainer\.\w+)", str(refused.value)):
            assert key in OmegaConf.to_yaml(config) or OmegaConf.select(config, key, default="none") != "none"
        check(config, nodes((enough, 8), own=True))
