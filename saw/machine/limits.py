"""What the operating system gives a training: open files, processes, shared memory, disks, folders to write to.

Each check returns a line. The doctor shows all of them, and :func:`check` refuses a start if something is missing,
before Ray starts: Ray, vLLM or a worker would fail minutes later, with an error that names neither cause nor remedy.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saw.machine.disk import free_bytes, held_bytes, total_bytes, training_bytes, unwritable
from saw.machine.line import Line, gigabytes, missing, ok, warning
from saw.machine.shape import shape_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Open files and threads: fewer than the first number are refused (one worker on a CPU trained with 128 files, not
#: with 64, and not with 400 threads); below the second a warning is given, as both grow with GPUs and cores.
#: 8,192 files is Ray's own advice.
FILES, ADVISED_FILES = 256, 8192
THREADS, ADVISED_THREADS = 1024, 4096
#: Where the limits of cgroups are, and the file with this process's: in version 2, and of processes in version 1.
CGROUPS, OWN_CGROUP = {"": Path("/sys/fs/cgroup"), "pids": Path("/sys/fs/cgroup/pids")}, Path("/proc/self/cgroup")
#: Ray refuses an object store above this size that does not fit into shared memory; a smaller one goes to the disk.
SLOW_STORE = 10**10
#: Ray's default share of the memory for its object store.
STORE_SHARE = 0.3
#: Enough shared memory for NCCL and vLLM's queues between processes; Docker's default of 64 MB is too little.
SHARED_BETWEEN_PROCESSES = 10**9
#: For semaphores and small queues of all processes.
SEMAPHORES = 10**7
#: Space for logs, metrics and sampled answers.
LOGS = 10**8
#: Ray moves no more objects to a disk that is fuller than this.
FULL_DISK = 0.95
BUCKET = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
FOLDER = "trainer.default_local_dir"


def on_gpus(config: DictConfig | None) -> bool:
    """Whether the experiment trains on accelerators."""
    return config is not None and config.trainer.device != "cpu"


def check(config: DictConfig) -> None:
    """Check everything here for a training that starts its own Ray.

    Args:
        config (DictConfig): verl's whole configuration, with absolute paths.

    Raises:
        ValueError: one line per fault, with what was found, what is needed and the remedy.
    """
    lines = (open_files(), processes(), shared_memory(config), disk(config), ray_disk(config))
    if faults := [line for line in lines if line.status == "missing"]:
        said = (f"{line.thing}: {line.found}; needed: {line.needed}; {line.remedy}" for line in faults)
        raise ValueError("\n".join(said))


def open_files(allowed: int | None = None) -> Line:
    """The number of files that a process may open.

    Args:
        allowed (int | None): the hard limit, to which Ray and vLLM raise the soft one; None measures.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if allowed is None else allowed
    thing, needed = "open files", f"{ADVISED_FILES:,} per process, for the sockets of Ray and vLLM"
    if allowed == resource.RLIM_INFINITY or allowed >= ADVISED_FILES:
        return ok(thing, "no limit" if allowed == resource.RLIM_INFINITY else f"{allowed:,} per process", needed)
    found = f"{allowed:,} per process (ulimit -Hn)"
    if allowed < FILES:
        needed = f"{FILES:,} at least, {needed}"
    remedy = (
        "ulimit -n 65536 before the start, as root, or once /etc/security/limits.conf has a higher hard limit for "
        "nofile; in Docker --ulimit nofile=65536"
    )
    return (missing if allowed < FILES else warning)(thing, found, needed, remedy)


def processes(free: Mapping[str, int] | None = None) -> Line:
    """How many more processes and threads may run.

    Args:
        free (Mapping[str, int] | None): by the name of each limit that there is; None measures.
    """
    free = dict(_free_processes()) if free is None else free
    thing, needed = "processes", f"{ADVISED_THREADS:,} more processes and threads"
    if not free:
        return ok(thing, "no limit", needed)
    limit = min(free, key=lambda name: free[name])
    found = f"{free[limit]:,} more allowed by {limit}"
    if free[limit] >= ADVISED_THREADS:
        return ok(thing, found, needed)
    remedy = "ulimit -u unlimited before the start, or stop other processes; in Docker a higher --pids-limit"
    return (missing if free[limit] < THREADS else warning)(thing, found, needed, remedy)


def _free_processes() -> Iterator[tuple[str, int]]:
    import psutil

    allowed, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if allowed != resource.RLIM_INFINITY and os.geteuid() != 0:  # root has no limit
        own = [each.info for each in psutil.process_iter(["uids", "num_threads"])]
        used = sum(each["num_threads"] or 0 for each in own if each["uids"] and each["uids"].real == os.getuid())
        yield f"ulimit -u, {allowed:,}", max(0, allowed - used)
    for folder in _cgroups():
        try:
            limit, running = ((folder / name).read_text().strip() for name in ("pids.max", "pids.current"))
            if limit != "max":
                yield f"{folder / 'pids.max'}, {int(limit):,}", max(0, int(limit) - int(running))
        except (OSError, ValueError):  # not there, or empty
            continue


def _cgroups() -> Iterator[Path]:
    """The folders of this process's cgroups, and of those around them: each has a limit of its own."""
    for line in OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.is_file() else ():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", None, "")
        if controllers in CGROUPS:
            root = CGROUPS[controllers]
            own = root / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def shared_memory(config: DictConfig | None, free: int | None = None, memory: int | None = None) -> Line:
    """``/dev/shm``: Ray's object store, NCCL, and vLLM's processes use it.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        free (int | None): bytes; None measures.
        memory (int | None): of the machine in bytes; None measures.
    """
    import psutil

    if free is None:
        free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    memory = psutil.virtual_memory().available if memory is None else memory
    stated = config.ray_kwargs.ray_init.get("object_store_memory") if config is not None else None
    if stated is not None and (not isinstance(stated, int) or stated <= 0):
        found = f"ray_kwargs.ray_init.object_store_memory is {stated!r}"
        return missing("shared memory", found, "a number of bytes above 0", "set it to one, or to null")
    store = stated or min(STORE_SHARE * memory, SLOW_STORE)
    found, needed = f"{gigabytes(free)} free in /dev/shm", f"{gigabytes(store)} for Ray's object store"
    remedy = "in Docker use --ipc=host or --shm-size; otherwise delete leftovers in /dev/shm, or remount it larger"
    between, whose = _between_processes(config)
    if free < between:
        return missing("shared memory", found, f"{gigabytes(between)} for {whose}, {needed}", remedy)
    if free >= store:
        return ok("shared memory", found, needed)
    if store > SLOW_STORE:
        return missing("shared memory", found, needed, f"{remedy}; or lower ray_kwargs.ray_init.object_store_memory")
    return warning("shared memory", found, f"{needed}, which is otherwise on the disk and slow", remedy)


def _between_processes(config: DictConfig | None) -> tuple[float, str]:
    """Bytes of shared memory without which a process is killed, and what uses them."""
    if config is None:
        return 0, "nothing"
    if on_gpus(config):
        return SHARED_BETWEEN_PROCESSES, "NCCL and vLLM"
    rollout = config.actor_rollout_ref.rollout
    try:
        weights = 4 * shape_of(config.actor_rollout_ref.model.path).parameters
    except ValueError:  # it is not here yet
        return 0, "nothing"
    # without a GPU, each worker hands vLLM the weights in a buffer of shared memory
    buffer = min(weights, rollout.checkpoint_engine.update_weights_bucket_megabytes << 20)
    return SEMAPHORES + config.trainer.n_gpus_per_node * buffer, f"weights ({BUCKET} at most, per worker)"


def checkpoint_bytes(config: DictConfig) -> float:
    """Bytes of the checkpoints that a training keeps, and of the merged model; 0 if it saves none.

    Raises:
        ValueError: if the model's size is not known.
    """
    if (config.trainer.save_freq or 0) <= 0:
        return 0.0
    kept = config.trainer.max_actor_ckpt_to_keep  # verl keeps all for null, 0 and below
    parameters = shape_of(config.actor_rollout_ref.model.path).parameters
    return training_bytes(parameters, kept if kept and kept > 0 else _checkpoints(config))


def _checkpoints(config: DictConfig) -> int:
    """Number of checkpoints if all are kept; 1 if the number of steps is unknown."""
    steps = config.trainer.total_training_steps
    return 1 if steps is None else max(1, -(-steps // config.trainer.save_freq))


def disk(config: DictConfig | None, free: int | None = None) -> Line:
    """Space for logs and checkpoints; what an earlier start has saved counts, as it is kept or replaced.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        free (int | None): bytes; None measures.
    """
    folder = Path(config.trainer.default_local_dir if config is not None else os.environ.get("SAW_RUNS", "runs"))
    folder = folder.absolute()
    free = free_bytes(folder) if free is None else free
    found = f"{gigabytes(free)} free at {folder}"
    larger = f"set {FOLDER} (or SAW_RUNS) to a larger disk"
    wanted = f"{gigabytes(LOGS)} for logs"
    if free < LOGS:
        return missing("disk", found, wanted, f"free space there, or {larger}")
    if config is None:
        return ok("disk", found)
    try:
        need = checkpoint_bytes(config)
    except ValueError:
        remedy = "see the line of the model; a checkpoint takes 12 bytes per parameter"
        return warning("disk", found, "checkpoints of a model whose size is not known yet", remedy)
    if not need:
        return ok("disk", found, f"{wanted}; trainer.save_freq saves no checkpoint")
    wanted += f", {gigabytes(need)} for checkpoints"
    if held := held_bytes(folder):
        wanted += f", of which {gigabytes(held)} are there"
    if free >= LOGS + need - held:
        return ok("disk", found, wanted)
    # With LoRA, or without the optimiser's state, a checkpoint is smaller than the 12 bytes per parameter counted here.
    actor_rollout = config.actor_rollout_ref
    smaller = actor_rollout.model.lora_rank > 0 or "optimizer" not in actor_rollout.actor.checkpoint.save_contents
    remedy = f"{larger}, or lower trainer.max_actor_ckpt_to_keep"
    return (warning if smaller else missing)("disk", found, wanted, remedy)


def ray_folder(config: DictConfig | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Ray's temporary folder, as Ray chooses it."""
    own = config.ray_kwargs.ray_init.get("_temp_dir") if config is not None else None
    return Path(own or Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp") / "ray")


def ray_disk(
    config: DictConfig | None = None, folder: Path | None = None, space: tuple[int, int] | None = None
) -> Line:
    """The disk of Ray's temporary folder.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        folder (Path | None): the folder; None for Ray's.
        space (tuple[int, int] | None): its free and all bytes; None measures.
    """
    folder = ray_folder(config)
    free, total = (free_bytes(folder), total_bytes(folder)) if space is None else space
    used = 1 - free / total if total else 1.0  # /proc and its like have no size
    remedy = "free space there, or set RAY_TMPDIR to a folder on another disk"
    if free < LOGS:
        return missing("Ray's disk", f"{gigabytes(free)} free at {folder}", f"{gigabytes(LOGS)} for Ray's logs", remedy)
    found = f"{used:.0%} used at {folder}"
    needed = f"less than {FULL_DISK:.0%}, otherwise Ray moves nothing there once its memory is full"
    return ok("Ray's disk", found, needed) if used < FULL_DISK else warning("Ray's disk", found, needed, remedy)


def library_folders(config: DictConfig | None, environ: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """The folders that libraries write to in every training, by the variable that sets each.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        environ (Mapping[str, str]): may set them.
    """
    home = Path.home()
    caches = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(environ.get("HF_HOME") or caches / "huggingface").expanduser()
    data = environ.get("HF_DATASETS_CACHE")  # verl reads every data file through the library datasets, which copies it
    folders = {"HF_DATASETS_CACHE" if data else "HF_HOME": Path(data or hub / "datasets").expanduser()}
    if config is None or on_gpus(config):
        folders["VLLM_CACHE_ROOT"] = Path(environ.get("VLLM_CACHE_ROOT") or caches / "vllm").expanduser()
        folders["TRITON_CACHE_DIR"] = Path(environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    return folders | {"RAY_TMPDIR": ray_folder(config, environ)}


def library_folder_faults(config: DictConfig | None, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What is wrong with :func:`library_folders`."""
    try:
        folders = library_folders(config, environ)
    except RuntimeError as error:  # from expanduser, or Path.home()
        yield f"HF_HOME, HF_DATASETS_CACHE, VLLM_CACHE_ROOT or HOME names no folder ({error}); set an absolute path"
        return
    for variable, folder in folders.items():
        if fault := unwritable(folder):
            yield (
                f"{variable} needs the folder {str(folder)!r}, but {fault}; expected one that can be made "
                "and written to"
            )
