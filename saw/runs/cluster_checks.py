"""Checks a running Ray cluster before a training joins it: what its nodes see, and that it is free.

The checks come before Ray starts anything, because these faults show late or never. If ranks write their parts of a
checkpoint to disks of their own, this is noticed only when the training is resumed. And a second training on a cluster
would silently share the first one's TransferQueue, which verl 0.9.1 finds by its name.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from saw.machine.cluster import ray_init, running
from saw.rewards import JUDGE
from saw.runs.handover import DATA, INPUTS
from saw.verl.config import ConfigError

logger = logging.getLogger(__name__)

#: Seconds in which every node must answer.
LIMIT = 60.0
#: Seconds that an earlier training has to leave the cluster: its processes end a little later than its driver.
PATIENCE = 30.0
#: What only the task runner reads, which is on this node (:mod:`saw.runs.task_runner`).
READ_HERE = (*DATA, "data.sampler.class_path", "trainer.v1.sampler.custom_sampler.path")
#: What workers read, wherever Ray starts them.
READ_EVERYWHERE = (*(key for key in INPUTS if key not in READ_HERE), f"{JUDGE}.prompt")
FOLDER = "trainer.default_local_dir"
#: Name and namespace of TransferQueue's controller, by which every training on a cluster looks it up.
CONTROLLER = ("TransferQueueController", "transfer_queue")


def check(config: DictConfig) -> None:
    """Check a running cluster; does nothing if the training starts its own Ray.

    Raises:
        ConfigError: naming the key, its value and the nodes; or the other training.
    """
    address = running(config)
    if address is None:
        return
    import ray

    ray.init(address=ray_init(config).get("address"), logging_level=logging.ERROR, log_to_driver=False)
    try:
        _wait_until_free(address)
        if others := _other_nodes():
            _check_files(config, others, address)
    finally:
        ray.shutdown()


def _wait_until_free(address: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while _in_use():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"another training is running on the Ray cluster at {address}, and verl's TransferQueue would mix the "
                "samples of both: wait for its end, or start another cluster"
            )
        time.sleep(0.5)


def _in_use() -> bool:
    import ray

    name, namespace = CONTROLLER
    return {"name": name, "namespace": namespace} in ray.util.list_named_actors(all_namespaces=True)


def _other_nodes() -> list[Mapping[str, Any]]:
    """The live nodes, without this one, on which verl may start workers."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    return [node for node in others if node["Resources"].get("CPU", 0) > 0 or _has_accelerator(node)]


def _has_accelerator(node: Mapping[str, Any]) -> bool:
    from verl.plugin.platform import get_platform

    return node["Resources"].get(get_platform().ray_resource_name(), 0) > 0


def _check_files(config: DictConfig, nodes: Sequence[Mapping[str, Any]], address: str) -> None:
    read = [(key, path) for key in READ_EVERYWHERE for path in _local_paths(OmegaConf.select(config, key))]
    folder = Path(config.trainer.default_local_dir)
    with _mark(folder) as mark:
        seen = _ask(nodes, [*(path for _, path in read), str(mark)], address)

    def without(path: str, nodes: Sequence[Mapping[str, Any]]) -> str:
        return ", ".join(_name(node) for node in nodes if path not in seen[node["NodeID"]])

    faults = [
        f"{key} is {path!r}, which does not exist on {names}; expected on every node of the Ray cluster at {address}"
        for key, path in read
        if (names := without(path, nodes))
    ]
    if names := without(str(mark), [node for node in nodes if _has_accelerator(node)]):
        fault = (
            f"{FOLDER} is {str(folder)!r}, which {names} does not share with this machine: each rank writes its part "
            "of a checkpoint to its own node"
        )
        if config.trainer.save_freq > 0 or config.trainer.resume_mode != "disable":
            faults.append(
                f"{fault}; expected a folder on a disk that the nodes share. (Without checkpoints, "
                "trainer.save_freq=-1 and trainer.resume_mode=disable, it need not be shared)"
            )
        else:
            logger.warning("%s, so none of this training could be resumed", fault)
    if faults:
        raise ConfigError("\n".join(faults))


def _local_paths(value: Any) -> list[str]:
    """The absolute paths in a setting; anything else may be a name on the Hub, or in a package."""
    values = value if isinstance(value, ListConfig) else [value]
    paths = [item.removeprefix("file://") for item in values if isinstance(item, str)]
    return [path for path in paths if os.path.isabs(path)]


@contextmanager
def _mark(folder: Path) -> Iterator[Path]:
    """A file in a folder, or in its nearest parent that exists, while the block runs."""
    mark = next(path for path in (folder, *folder.parents) if path.is_dir()) / f".saw-{uuid.uuid4().hex}"
    try:
        mark.touch()
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _ask(nodes: Sequence[Mapping[str, Any]], paths: Sequence[str], address: str) -> dict[str, set[str]]:
    """The paths that exist on each node, by the node's id.

    Raises:
        ConfigError: naming the nodes that do not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def existing(paths: Sequence[str]) -> set[str]:  # Ray sends its code: a node may lack this package
        return {path for path in paths if os.path.exists(path)}

    asked = {
        node["NodeID"]: existing.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(paths)
        for node in nodes
    }
    _, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=LIMIT)
    if late:
        silent = ", ".join(_name(node) for node in nodes if asked[node["NodeID"]] in late)
        raise ConfigError(
            f"on {silent} of the Ray cluster at {address}, no process starts within {LIMIT:.0f} s: see Ray's logs "
            "there, or stop Ray on it"
        )
    return {name: ray.get(task) for name, task in asked.items()}


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
