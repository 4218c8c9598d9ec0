"""The machine: accelerators, cores, memory, disks, compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saw.doctor.lines import Line, gibibytes, gigabytes, missing, ok, shortened, warning

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from saw.doctor.cluster import Cluster

#: Ray refuses an object store above this size that does not fit into shared memory; a smaller one goes to the disk.
SLOW_STORE = 10**10
#: Ray's default share of the memory for its object store.
STORE_SHARE = 0.3
#: Nominal GB per GPU if none is visible: the GPUs of the experiments.
ASSUMED = 80
#: Enough shared memory for NCCL and vLLM's queues between processes; Docker's default of 64 MB is too little.
SHARED_BETWEEN_PROCESSES = 10**9
#: Ray stores no more objects once its disk is fuller than this.
FULL_DISK = 0.95


def on_gpus(config: DictConfig | None) -> bool:
    """Whether the experiment trains on accelerators."""
    return config is not None and config.trainer.device != "cpu"


def driver(config: DictConfig | None, found: Any, environ: Mapping[str, str] = os.environ) -> Line:
    """The driver, and whether torch can use it.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        found (saw.machine.accelerator.Found): from ``saw.machine.accelerator.probe``.
        environ (Mapping[str, str]): its variables choose between CPU and GPU.
    """
    from saw.machine.accelerator import cluster_address, decide

    has = f"driver {found.driver or 'none'}, torch for CUDA {found.torch_cuda or 'none'}"
    try:
        platform = decide(environ, probe=lambda: found)
    except RuntimeError as error:
        return missing("driver and CUDA", has, "a GPU that torch can use", shortened(str(error)))
    if on_gpus(config) and not found.usable and cluster_address(environ) is None:
        reason = f" ({shortened(found.error)})" if found.error else ""
        remedy = "run on a GPU node, or rehearse on the CPU: SAW_PLATFORM=cpu and size=toy (a table: --rehearse)"
        return missing("driver and CUDA", has + reason, "a GPU that torch can use", remedy)
    return ok("driver and CUDA", f"{has}; platform {platform.name}: {platform.reason}")


def gpus(config: DictConfig | None, found: Any, cluster: Cluster | None = None) -> Line:
    """The number of GPUs.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        found (saw.machine.accelerator.Found): this machine's.
        cluster (Cluster | None): the running Ray cluster, whose GPUs count instead.
    """
    from saw.machine.accelerator import describe

    there, where = (cluster.gpus, "the Ray cluster") if cluster else (len(found.usable_devices), "this machine")
    if not cluster and found.devices:
        where += f" ({describe(found.devices)}{'' if found.usable else ', which torch cannot use'})"
    if config is None or not on_gpus(config):
        return ok("GPUs", f"{there:g} on {where}", "none on platform cpu" if config is not None else "")
    if cluster and cluster.error:
        return warning("GPUs", "unknown: the Ray cluster does not answer", "", "see the line of the Ray cluster")
    from saw.machine.cluster import needed

    wanted = needed(config).gpus
    shape = f"{wanted:g} ({config.trainer.nnodes} nodes x {config.trainer.n_gpus_per_node})"
    if there >= wanted:
        return ok("GPUs", f"{there:g} on {where}", shape)
    remedy = (
        "use a machine with more, or lower trainer.n_gpus_per_node or trainer.nnodes (for a table: --gpus, --nodes)"
    )
    return missing("GPUs", f"{there:g} on {where}", shape, remedy)


def gpu_memory(config: DictConfig, found: Any, fit: Callable[[DictConfig, float], tuple[float, list[str]]]) -> Line:
    """The memory of the smallest GPU against the peak of the training.

    Args:
        config (DictConfig): the experiment.
        found (saw.machine.accelerator.Found): this machine's GPUs.
        fit (Callable): gives the bytes that the training needs on a GPU of a given size, and what does not fit.
    """
    thing = "GPU memory"
    if not on_gpus(config):
        return ok(thing, "not checked", "none on platform cpu")
    from saw.memory import usable

    size = found.memory or usable(ASSUMED)
    try:
        need, faults = fit(config, size)
    except ValueError as error:
        return warning(
            thing, f"no estimate: {shortened(str(error))}", "", "see docs/memory.md, and watch the first step"
        )
    if found.memory is None:
        needed = f"about {gibibytes(need)} of {gibibytes(size)} each"
        remedy = f"on such GPUs {'it does not fit: ' + '; '.join(faults) if faults else 'it fits; compare with yours'}"
        return warning(thing, "not known from here", needed, remedy)
    needed = f"about {gibibytes(need)} each"
    if faults:
        return missing(thing, f"{gibibytes(size)} each", needed, "; ".join(faults))
    return ok(thing, f"{gibibytes(size)} each", needed)


def cores(config: DictConfig | None, cluster: Cluster | None = None, there: Any = None) -> Line:
    """CPUs for Ray's actors; with too few, Ray waits forever.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        cluster (Cluster | None): the running Ray cluster.
        there (saw.machine.cluster.Available | None): Ray's resources; None for the cluster's, or this machine's.
    """
    if cluster and cluster.error:
        return warning("cores", "unknown: the Ray cluster does not answer", "", "see the line of the Ray cluster")
    here = len(os.sched_getaffinity(0))
    if config is None:
        return ok("cores", f"{cluster.cpus:g}, as Ray counts" if cluster else f"{here} logical")
    from saw.machine.cluster import Available, available, check, needed

    if there is None and cluster is not None:
        there = Available(f"the Ray cluster at {cluster.address}", cluster.nodes, own=False)
    there = there or available(config)
    need = needed(config)
    found = f"{there.cpus:g} on {there.where}"
    if there.own and there.cpus != here:  # the number is only how many actors Ray starts at a time
        found = f"{here} on {there.where}; Ray counts {there.cpus:g} (ray_kwargs.ray_init.num_cpus)"
    wanted = f"{need.cpus:g}: " + ", ".join(
        f"{cpus:g} {part.rpartition('.')[2]}" for part, cpus in need.parts.items() if cpus
    )
    fault = None
    if there.gpus >= need.gpus:  # otherwise check reports the GPUs, which have their own line
        try:
            check(config, there)
        except ValueError as error:
            fault = shortened(str(error), 1000)
    elif there.cpus < need.cpus:
        fault = "lower trainer.n_gpus_per_node, or give Ray more: ray_kwargs.ray_init.num_cpus, ray start --num-cpus"
    return missing("cores", found, wanted, fault) if fault else ok("cores", found, wanted)


def shared_memory(config: DictConfig | None, free: int | None = None, memory: int | None = None) -> Line:
    """``/dev/shm``: Ray's object store, NCCL, and vLLM's processes use it.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        free (int | None): bytes; None measures.
        memory (int | None): of the machine in bytes; None measures.
    """
    import psutil

    free = shutil.disk_usage("/dev/shm").free if free is None else free
    memory = psutil.virtual_memory().available if memory is None else memory
    stated = config.ray_kwargs.ray_init.get("object_store_memory") if config is not None else None
    store = stated or min(STORE_SHARE * memory, SLOW_STORE)
    found, needed = f"{gigabytes(free)} free in /dev/shm", f"{gigabytes(store)} for Ray's object store"
    remedy = "in Docker use --ipc=host or --shm-size; otherwise delete leftovers in /dev/shm, or remount it larger"
    if on_gpus(config) and free < SHARED_BETWEEN_PROCESSES:
        needed = f"{gigabytes(SHARED_BETWEEN_PROCESSES)} for NCCL and vLLM, {needed}"
        return missing("shared memory", found, needed, remedy)
    if free >= store:
        return ok("shared memory", found, needed)
    if store > SLOW_STORE:
        return missing("shared memory", found, needed, f"{remedy}; or lower ray_kwargs.ray_init.object_store_memory")
    return warning("shared memory", found, f"{needed}, which is otherwise on the disk and slow", remedy)


def disk(config: DictConfig | None, needed: Callable[[DictConfig], float], free: int | None = None) -> Line:
    """Space for the checkpoints.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        needed (Callable[[DictConfig], float]): gives the bytes that its checkpoints take.
        free (int | None): bytes; None measures.
    """
    from saw.machine.disk import free_bytes

    folder = Path(config.trainer.default_local_dir if config is not None else os.environ.get("SAW_RUNS", "runs"))
    folder = folder.absolute()
    free = free_bytes(folder) if free is None else free
    found = f"{gigabytes(free)} free at {folder}"
    if config is None:
        return ok("disk", found)
    larger = "set trainer.default_local_dir (or SAW_RUNS) to a larger disk"
    try:
        need = needed(config)
    except ValueError:
        remedy = "see the line of the model; a checkpoint takes 12 bytes per parameter"
        return warning("disk", found, "checkpoints of a model whose size is not known yet", remedy)
    wanted = f"{gigabytes(need)} for checkpoints" if need else "nothing: trainer.save_freq saves no checkpoint"
    if free >= need:
        return ok("disk", found, wanted)
    return missing("disk", found, wanted, f"{larger}, or lower trainer.max_actor_ckpt_to_keep")


def ray_disk(folder: Path | None = None, used: float | None = None) -> Line:
    """The disk of Ray's temporary folder.

    Args:
        folder (Path | None): the folder; None for Ray's.
        used (float | None): the share that is used; None measures.
    """
    folder = folder or Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
    if used is None:
        usage = shutil.disk_usage(folder)
        used = 1 - usage.free / usage.total
    found, needed = f"{used:.0%} used at {folder}", f"less than {FULL_DISK:.0%}, otherwise Ray stores nothing more"
    if used < FULL_DISK:
        return ok("Ray's disk", found, needed)
    return missing("Ray's disk", found, needed, "free space there, or set RAY_TMPDIR to a folder on another disk")


def compiler(
    config: DictConfig | None,
    which: Callable[[str], str | None] = shutil.which,
    include: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Line:
    """A C compiler and Python's headers, tested with an empty module: Triton builds its launchers with them.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        which (Callable[[str], str | None]): finds an executable.
        include (Path | None): the folder of ``Python.h``; None for this Python's.
        environ (Mapping[str, str]): may name the compiler, ``CC``.
    """
    thing, needed = "compiler, headers", "a C compiler and Python.h, for Triton"
    if config is not None and not on_gpus(config):
        return ok(thing, "not checked", "none on platform cpu")
    include = include or Path(sysconfig.get_paths()["include"])
    name = environ.get("CC") or which("gcc") or which("clang")
    if name is None or which(name) is None:
        return missing(thing, f"no compiler ({name or 'gcc, clang'})", needed, "install gcc, or name a compiler in CC")
    if not (include / "Python.h").is_file():
        version = sysconfig.get_python_version()
        remedy = f"install Python's development package, for example python{version}-dev"
        return missing(thing, f"{name}; no Python.h in {include}", needed, remedy)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("#include <Python.h>\nint empty(void) { return 0; }\n")
        command = [name, "-shared", "-fPIC", f"-I{include}", str(source), "-o", f"{folder}/empty.so"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        remedy = "fix the compiler, or name another in CC"
        return missing(thing, f"{name} fails: {shortened(result.stderr, 160)}", needed, remedy)
    return ok(thing, f"{name} builds an empty module", needed)
