"""The machine: accelerators, cores, folders, compiler; what the operating system limits is in saw.machine.limits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saw.doctor.lines import gibibytes, shortened
from saw.machine.limits import on_gpus
from saw.machine.line import Line, missing, ok, warning

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from saw.doctor.cluster import Cluster

#: Nominal GB per GPU if none is visible: the GPUs of the experiments.
ASSUMED = 80


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
    """The number of GPUs, and whether vLLM's engines divide them.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        found (saw.machine.accelerator.Found): this machine's.
        cluster (Cluster | None): the running Ray cluster, whose GPUs count instead.
    """
    from saw.machine.accelerator import describe

    there, where = (cluster.gpus, "the Ray cluster") if cluster else (len(found.usable_devices), "this machine")
    if not cluster and found.devices:
        where += f" ({describe(found.devices)}{'' if found.usable else ', which torch cannot use'})"
    if config is None:
        return ok("GPUs", f"{there:g} on {where}")
    from saw.machine.cluster import check_engines, needed

    try:
        check_engines(config)
    except ValueError as error:  # on a CPU too, where verl counts worker processes as GPUs
        return missing("GPUs", f"{there:g} on {where}", "engines of vLLM that divide them", shortened(str(error), 1000))
    if not on_gpus(config):
        return ok("GPUs", f"{there:g} on {where}", "none on platform cpu")
    if cluster and cluster.error:
        return warning("GPUs", "unknown: the Ray cluster does not answer", "", "see the line of the Ray cluster")
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
    from saw.machine.cluster import Available, available, check_room, needed

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
    if there.gpus >= need.gpus:  # otherwise it reports the GPUs, which have their own line
        try:
            check_room(config, there)
        except ValueError as error:
            fault = shortened(str(error), 1000)
    elif there.cpus < need.cpus:
        fault = "lower trainer.n_gpus_per_node, or give Ray more: ray_kwargs.ray_init.num_cpus, ray start --num-cpus"
    return missing("cores", found, wanted, fault) if fault else ok("cores", found, wanted)


def folders(config: DictConfig | None, faults: Callable[[DictConfig | None], Iterable[str]]) -> Line:
    """The folders that a training, and the libraries that it uses, write to.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        faults (Callable): gives what is wrong with them, each with its key.
    """
    thing, needed = "folders", "folders that can be made and written to"
    if found := list(faults(config)):
        return missing(thing, "; ".join(found), needed, "set the named key or variable to another folder")
    return ok(thing, "all can be written to", needed)


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
