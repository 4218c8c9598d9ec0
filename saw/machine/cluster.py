"""Counts what a training needs from Ray before it starts, because Ray waits forever for a CPU that no node has."""

from __future__ import annotations

import logging
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from saw.machine.nodes import Node, Nodes, connect

ADDRESS = "ray_kwargs.ray_init.address"
STORAGE = "transfer_queue.backend.SimpleStorage"
UNITS = f"{STORAGE}.num_data_storage_units"
#: The resource pool of a rollout on GPUs of its own.
ROLLOUT = "actor_rollout_ref.rollout"
#: TransferQueue's default number of storage actors per node, as its documentation recommends.
UNITS_A_NODE = 2


def running(config: DictConfig) -> str | None:
    """The address of the Ray cluster that verl will join; None if it will start its own.

    Ray itself finds it, from the address that verl passes: even without one it joins a cluster that ``ray start``
    started on this machine.

    Raises:
        ValueError: for an invalid address, such as one of a Ray client; or for none while several clusters run here.
    """
    return _found(ray_init(config).get("address"))


def _found(given: str | None) -> str | None:
    """The address that Ray's own code makes of the given one, or finds without one; None for a new cluster."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address(given)
    except (ValueError, ConnectionError) as error:
        raise ValueError(f"{_setting(given)}; expected HOST:PORT, auto or local (Ray: {error})") from None


def _setting(given: str | None) -> str:
    key, value = ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS")) if given is None else (ADDRESS, given)
    return f"{key} is {value!r}"


def ray_init(config: DictConfig) -> DictConfig:
    """The arguments that verl passes to ``ray.init``."""
    return config.ray_kwargs.get("ray_init") or OmegaConf.create()


def reach(address: str | None = None) -> None:
    """Connect to the port of the running cluster that ``ray.init`` would join; does nothing if there is none.

    Args:
        address (str | None): as configured; None finds it as ``ray.init`` does.

    Raises:
        ValueError: if the address is invalid, or nothing listens there.
    """
    try:
        connect(_found(address) or "")
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception) -> ValueError:
    return ValueError(
        f"{_setting(address)}, and no Ray cluster can be reached there ({error}); start it (docs/clusters.md), or "
        "name another one"
    )


@dataclass(frozen=True)
class Need:
    """The most resources that a training takes from Ray.

    Attributes:
        parts (dict[str, float]): CPUs, by the key that sets them, or by their purpose.
        cpus (float): their sum.
        gpus (float): of all resource pools.
    """

    parts: dict[str, float]
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Available(Nodes):
    """The resources that Ray has.

    Attributes:
        where (str): for a message.
        nodes (Sequence[Node]): the live ones.
        own (bool): a Ray that verl will start, not a running cluster.
    """

    where: str
    nodes: Sequence[Node]
    own: bool


#: What multiplies to the GPUs of one of vLLM's engines.
PARALLEL = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size")


def _pools(config: DictConfig) -> dict[str, tuple[int, int]]:
    """Nodes and GPUs per node of verl's resource pools, by the section that sets them.

    Follows ``PPOTrainer._init_resource_pool_mgr`` and ``RolloutReplica.init_standalone`` of verl 0.9.1.
    """
    sections = {"trainer": config.trainer}
    if config.reward.reward_model.enable_resource_pool:
        sections["reward.reward_model"] = config.reward.reward_model
    if OmegaConf.select(config, "distillation.enabled"):
        sections["distillation"] = config.distillation
    if str(config.trainer.v1.trainer_mode).endswith("separate_async"):  # what it may be is checked elsewhere
        sections[ROLLOUT] = config.actor_rollout_ref.rollout
    for name, section in sections.items():
        for key in ("nnodes", "n_gpus_per_node"):
            if type(section[key]) is not int or section[key] < 1:
                raise ValueError(f"{name}.{key} is {section[key]!r}; expected a whole number of at least 1")
    return {name: (section.nnodes, section.n_gpus_per_node) for name, section in sections.items()}


def gpus(config: DictConfig) -> int:
    """The GPUs of all resource pools of a training.

    Raises:
        ValueError: if a pool has no node or no GPU.
    """
    return sum(nodes * each for nodes, each in _pools(config).values())


def _cpus_of_a_gpu(pool: str = "trainer") -> int:
    """CPUs that verl's placement groups hold per GPU: one for each worker group that may share it."""
    from verl.single_controller.ray import ResourcePoolManager

    return 2 if pool == ROLLOUT else ResourcePoolManager.max_colocate_count


def storage_units(config: DictConfig) -> int:
    """The number of TransferQueue's storage actors; by default :data:`UNITS_A_NODE` per node of the training."""
    if config.transfer_queue.backend.storage_backend != "SimpleStorage":
        return 0
    units = OmegaConf.select(config, UNITS)
    if units is None:
        return UNITS_A_NODE * config.trainer.nnodes
    if not isinstance(units, int) or units < 1:
        raise ValueError(f"{UNITS} is {units!r}; expected a whole number from 1, or null: {UNITS_A_NODE} per node")
    return units


def needed(config: DictConfig) -> Need:
    """Count the Ray resources that verl 0.9.1 and TransferQueue 0.1.11 take.

    Held until the end are the placement groups, with one bundle per GPU, and one CPU each for TransferQueue's
    controller and storage units. The judge's actor asks for none. Every other actor (task runner, vLLM servers, load
    balancers, agent loop and reward workers) has Ray's default, which holds no CPU, and starts even if none is free.

    Raises:
        ValueError: if a pool has no node or no GPU, or TransferQueue no storage unit.
    """
    parts = {
        f"{name}.n_gpus_per_node": float(_cpus_of_a_gpu(name) * nodes * each)
        for name, (nodes, each) in _pools(config).items()
    }
    parts[UNITS] = float(storage_units(config))
    parts["TransferQueue's controller"] = 1.0
    return Need(parts, sum(parts.values()), float(gpus(config)))


def nodes_of_the_cluster(address: str | None = None, resource: str = "GPU") -> tuple[Node, ...]:
    """The live nodes of a running Ray cluster, queried over a short connection.

    Args:
        address (str | None): as configured; None finds it as ``ray.init`` does.
        resource (str): Ray's name for the accelerators.

    Raises:
        ValueError: if the address is invalid, or the cluster can't be reached.
    """
    import ray

    reach(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ray.exceptions.AuthenticationError) as error:
        raise _unreachable(address, error) from error
    try:
        found = [(node["NodeManagerHostname"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
    return tuple(Node(name, has.get("CPU", 0.0), has.get(resource, 0.0)) for name, has in found)


def _this_machine(options: Mapping[str, Any], resource: str) -> Node:
    """What Ray's own code will find on this machine: respects container limits and hidden accelerators."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    spec = ResourceAndLabelSpec(
        num_cpus=options.get("num_cpus"),
        num_gpus=options.get("num_gpus"),
        resources=dict(options.get("resources") or {}),
        memory=1,  # otherwise Ray measures it
        object_store_memory=1,
    )
    found = spec.resolve(is_head=True, node_ip_address="127.0.0.1").to_resource_dict()
    return Node(platform.node(), found.get("CPU", 0), found.get(resource, 0))


def available(config: DictConfig) -> Available:
    """The resources of the Ray that verl will start or join.

    Raises:
        ValueError: if the cluster can't be reached.
    """
    from verl.plugin.platform import get_platform

    resource = get_platform().ray_resource_name()
    address = running(config)
    if address is None:
        return Available("this machine", (_this_machine(ray_init(config), resource),), own=True)
    nodes = nodes_of_the_cluster(ray_init(config).get("address"), resource)
    return Available(f"the Ray cluster at {address}", nodes, own=False)


def check(config: DictConfig, there: Available) -> None:
    """Check that the GPUs divide into vLLM's engines, and that Ray can place everything.

    The doctor has a line for each.

    Args:
        config (DictConfig): verl's configuration.
        there (Available): see :func:`available`.

    Raises:
        ValueError: as :func:`check_engines` and :func:`check_room`.
    """
    check_engines(config)
    check_room(config, there)


def check_room(config: DictConfig, there: Available) -> None:
    """Check that Ray can place everything; it would wait forever for resources that it does not have.

    Args:
        config (DictConfig): verl's configuration.
        there (Available): see :func:`available`.

    Raises:
        ValueError: with the count, its parts, what there is, and the keys to change.
    """
    need = needed(config)
    if need.gpus > there.gpus:
        asked = " + ".join(f"{name}: {nodes} x {gpus}" for name, (nodes, gpus) in _pools(config).items())
        gain = (
            "several nodes need a running Ray cluster: docs/clusters.md"
            if there.own
            else "ray start --num-gpus sets how many a node has"
        )
        raise ValueError(
            f"Ray needs {need.gpus:g} GPUs ({asked}, nnodes x n_gpus_per_node), and {there.where} has {there.gpus:g}; "
            f"lower these keys, or use more GPUs ({gain})"
        )
    gain = (
        f"ray_kwargs.ray_init.num_cpus={math.ceil(need.cpus)} gives it enough (they are logical: these actors are "
        "mostly idle)"
        if there.own
        else "ray start --num-cpus gives a node more (they are logical: these actors are mostly idle)"
    )
    keys = [f"{UNITS} (now {storage_units(config)})", *(f"{name}.n_gpus_per_node" for name in _pools(config))]
    remedy = f"{gain}; or lower {' or '.join(keys)}"
    if need.cpus > there.cpus:
        parts = ", ".join(f"{count:g} for {part}" for part, count in need.parts.items())
        raise ValueError(
            f"Ray needs {need.cpus:g} CPUs ({parts}), and {there.where} has {there.cpus:g}: it would wait forever. "
            f"{remedy}"
        )
    _check_places(config, there, remedy)


def engine_sizes(config: DictConfig, place: str = ROLLOUT) -> dict[str, int]:
    """What multiplies to the GPUs of one of vLLM's engines, by the name of the key in the section ``place``.

    Raises:
        ValueError: for a size that is not a whole number of at least 1; verl would divide by it minutes later.
    """
    sizes = {name: OmegaConf.select(config, f"{place}.{name}", default=1) for name in PARALLEL}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{place}.{name} is {size!r}; expected a whole number of at least 1")
    return sizes


def check_engines(config: DictConfig) -> None:
    """Check that the GPUs of a pool divide into vLLM's engines: verl asserts it late, or leaves GPUs without work.

    Raises:
        ValueError: naming the keys and the counts.
    """
    pools = _pools(config)
    engines = {ROLLOUT: pools.get(ROLLOUT, pools["trainer"])}
    if "reward.reward_model" in pools:
        engines["reward.reward_model.rollout"] = pools["reward.reward_model"]
    for place, (nodes, gpus) in engines.items():
        sizes = engine_sizes(config, place)
        if nodes * gpus % math.prod(sizes.values()):
            now = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
            raise ValueError(
                f"an engine of {place} takes {math.prod(sizes.values())} GPUs ({now}), which do not divide the "
                f"{nodes * gpus} GPUs ({nodes} x {gpus}, nnodes x n_gpus_per_node) that it has; verl's default for "
                f"{PARALLEL[0]} is 2: set {place}.{PARALLEL[0]}=1 if the model fits on one GPU"
            )


def _check_places(config: DictConfig, there: Available, remedy: str) -> None:
    """Check that single nodes have room: a node's part of a pool is never split, and a storage unit can't move."""
    on_some = OmegaConf.select(config, f"{STORAGE}.required_node_resource") is not None
    share = 0 if on_some else math.ceil(storage_units(config) / len(there.nodes))
    if poor := [node for node in there.nodes if node.cpus < share]:
        raise ValueError(
            f"{UNITS} is {storage_units(config)}, and TransferQueue places them in turn on all {len(there.nodes)} "
            f"nodes of {there.where}, but {', '.join(node.name for node in poor)} has fewer than {share} CPUs: "
            "Ray would wait forever. ray start --num-cpus gives a node more, or "
            f"+{STORAGE}.required_node_resource names a resource that only suitable nodes have"
        )
    for name, (nodes, gpus) in _pools(config).items():
        each = _cpus_of_a_gpu(name)
        places = sum(int(min(node.gpus // gpus, max(0.0, node.cpus - share) // (each * gpus))) for node in there.nodes)
        if places < nodes:
            raise ValueError(
                f"{name} wants {nodes} x {gpus} GPUs (nnodes x n_gpus_per_node), each with {each * gpus} CPUs on one "
                f"node beside {share} for TransferQueue, and {there.where} has room for {places}: Ray would wait "
                f"forever. {remedy}"
            )
