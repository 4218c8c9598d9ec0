"""Starts a job as its own process tree, follows it, and leaves no process behind.

Ray, TransferQueue, vLLM and the reward workers are dozens of processes in several sessions, and some outlive their
parent. Each job therefore has an id in its environment, which all of its processes inherit. Every process with the id
belongs to the job and is stopped with it. A nested job has both ids.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from saw.records import metrics_file
from saw.records.files import value_of, write_whole

logger = logging.getLogger(__name__)

#: The variable that marks every process of a run.
RUN_ID = "SAW_RUN_ID"
#: Ray's processes rename themselves with setproctitle, which otherwise overwrites the environment that holds the id.
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
#: Seconds that a process has to stop by itself before it is killed.
GRACE = 5.0
#: File in a job's folder, while the job runs: its id, and the process that follows it.
OWNER = "running.json"
#: Least seconds between memory samples, and how many times as long as a sample takes: each walks the page tables of
#: every process, which takes a quarter of a second for a model of 135 million parameters.
MEMORY_INTERVAL, MEMORY_PAUSE = 5.0, 100
#: Log lines that mean that something went wrong although the run continues (verl logs them and exits 0).
FAULTS = ("ERROR", "Traceback (most recent call last)")
#: verl prints this after the last step. Later errors of vLLM only mean that it is being stopped.
END_OF_TRAINING = "Final validation metrics"


#: Ids of the jobs that :func:`stop_job_in` has stopped.
_STOPPED: set[str] = set()


class JobFailed(RuntimeError):
    """A run ended with an error or hit its time limit; the message holds the end of its log."""


@dataclass
class Job:
    """A command that runs as its own process tree.

    Attributes:
        command (Sequence[str]): what to execute.
        folder (Path): of the log; only one job at a time may use it.
        time_limit (float): seconds after which the job is stopped.
        environment (Mapping[str, str]): added to this process's environment.
        name (str): of the log.
        peak_bytes (int): peak memory so far, over all processes, shared pages counted once.
    """

    command: Sequence[str]
    folder: Path
    time_limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = "train"
    peak_bytes: int = 0

    @property
    def log(self) -> Path:
        """The job's output; an earlier log is kept beside it, under a number."""
        return self.folder / f"{self.name}.log"

    @property
    def owner(self) -> Path:
        """Names the process that follows the job; it exists while the job runs."""
        return self.folder / OWNER

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen]:
        """Start the job, and stop all of its processes when the block ends.

        Raises:
            JobFailed: if another job is using the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop_leftovers()
        metrics_file.put_aside(self.log)
        run_id = uuid.uuid4().hex
        with self.log.open("w") as log:
            process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                env={
                    **os.environ,
                    **self.environment,
                    **KEEP_ENVIRONMENT,
                    RUN_ID: "/".join([*_ids(os.environ), run_id]),
                },
            )
        self._write_owner(run_id)
        watcher = _start_watcher(run_id)
        try:
            yield process
        finally:
            stop(run_id)
            watcher.kill()
            watcher.wait()
            process.wait()
            self.owner.unlink(missing_ok=True)

    def finish(self, look: Callable[[], None] = lambda: None, interval: float = 1.0) -> None:
        """Run to the end, and call ``look`` every ``interval`` seconds and once more at the end.

        Raises:
            JobFailed: if the job failed or hit its time limit.
            KeyboardInterrupt: re-raised after all of its processes have been stopped.
        """
        with self.running() as process:
            run_id = json.loads(self.owner.read_text())["run_id"]
            started = time.monotonic()
            next_sample = started + MEMORY_INTERVAL
            while process.poll() is None:
                if time.monotonic() - started > self.time_limit:
                    raise JobFailed(f"stopped after its time limit of {self.time_limit:.0f} s; {self.log_end()}")
                if (began := time.monotonic()) > next_sample:
                    self.peak_bytes = max(self.peak_bytes, _memory(run_id))
                    ended = time.monotonic()
                    next_sample = ended + max(MEMORY_INTERVAL, MEMORY_PAUSE * (ended - began))
                look()
                time.sleep(interval)
            look()
        if run_id in _STOPPED:  # whatever its exit code is: not every process that is told to stop ends with an error
            _STOPPED.discard(run_id)
            raise JobFailed("was stopped")
        if process.returncode != 0:
            raise JobFailed(f"ended with exit code {process.returncode}; {self.log_end()}")

    def _write_owner(self, run_id: str) -> None:
        owner = {"run_id": run_id, "owner": os.getpid(), "started": psutil.Process().create_time()}
        write_whole(self.owner, json.dumps(owner))

    def is_followed(self) -> bool:
        """Whether a process runs a job in the folder; not if that process was killed, whatever it has left running."""
        owner = _read_owner(self.owner)
        return owner is not None and _follows(owner)

    def stop_leftovers(self) -> None:
        """Stop the processes of an earlier job in this folder, if the process that followed it was killed.

        Raises:
            JobFailed: if that process is still running: two jobs must not share a folder.
        """
        if not self.owner.exists():
            return
        owner = _read_owner(self.owner)
        if owner is None:
            logger.warning("%s is broken; treated as left over from a killed job", self.owner)
        elif owner["owner"] != os.getpid() and _follows(owner):
            raise JobFailed(f"{self.folder} is in use by process {owner['owner']}; stop it, or choose another folder")
        else:
            stop(owner["run_id"])
        self.owner.unlink(missing_ok=True)

    def log_end(self, lines: int = 25) -> str:
        """The last lines of the log, and its path."""
        text = self.log.read_text(errors="replace").splitlines()
        return f"the end of {self.log}:\n" + "\n".join(text[-lines:])


@dataclass
class TrainingJob(Job):
    """A training, which logs metrics.

    Attributes:
        resume (bool): keep the metrics of the earlier run in the folder, because this one resumes its checkpoint.
    """

    resume: bool = False

    @property
    def metrics(self) -> Path:
        """One JSON object per step: ``{"step": ..., "data": {...}}``."""
        return self.folder / "metrics.jsonl"

    def follow(self, on_step: Callable[[int, dict[str, Any]], None], interval: float = 1.0) -> None:
        """Run to the end, and call ``on_step(step, metrics)`` for each step as it is logged.

        Raises:
            JobFailed: if the run failed or hit its time limit.
            KeyboardInterrupt: re-raised after all of its processes have been stopped.
        """
        self.stop_leftovers()
        # Even without resuming: the training may still be refused, so nothing is removed before it has logged.
        aside = metrics_file.put_aside(self.metrics)
        earlier = metrics_file.parts(self.metrics)
        self.environment = {**self.environment, metrics_file.LOCATION: str(self.metrics.resolve())}
        steps = _Tail(self.metrics)

        def look() -> None:
            for step, metrics in steps:
                if not self.resume and step <= 1:
                    while earlier:
                        earlier.pop().unlink(missing_ok=True)
                on_step(step, metrics)

        try:
            self.finish(look, interval)
        finally:
            metrics_file.put_back(aside, self.metrics)

    def faults(self) -> list[str]:
        """Log lines with an error from while the run was training."""
        training, _, _ = self.log.read_text(errors="replace").partition(END_OF_TRAINING)
        return [line for line in training.splitlines() if any(fault in line for fault in FAULTS)]


class _Tail:
    """Iterates over the complete lines added to a metrics file since the last iteration.

    Broken lines are skipped, and the first one is named in a warning: they must not end the training, nor others.
    """

    def __init__(self, path: Path):
        self.path = path
        self.position = 0
        self.number = 0
        self.warned = False

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for line in self._new_lines():
            if not line.strip():
                continue
            try:
                step = metrics_file.checked(value_of(line), self.path, self.number)
            except ValueError as error:
                if not self.warned:
                    logger.warning("%s; it is skipped, as are other broken lines of this file", error)
                self.warned = True
                continue
            yield step

    def _new_lines(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            while (line := file.readline()).endswith(b"\n"):
                self.position = file.tell()
                self.number += 1
                yield line


def _ids(environment: Mapping[str, str]) -> list[str]:
    """Ids of the job and of the jobs around it, the outermost first."""
    return [run_id for run_id in environment.get(RUN_ID, "").split("/") if run_id]


def processes_of(run_id: str) -> list[psutil.Process]:
    """All live processes of a run, and of the runs that it started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if run_id in _ids(process.environ()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def stop(run_id: str) -> None:
    """Stop all processes of a run, and wait until they are gone."""
    for send in ("terminate", "kill"):
        processes = [process for process in processes_of(run_id) if process.pid != os.getpid()]
        for process in processes:
            with suppress(psutil.Error):
                getattr(process, send)()
        psutil.wait_procs(processes, timeout=GRACE)


def stop_job_in(folder: Path) -> None:
    """Stop the job that another thread of this process runs in a folder, if there is one."""
    owner = _read_owner(folder / OWNER)  # None: it has just ended, or not started yet
    if owner is not None and owner["owner"] == os.getpid():
        _STOPPED.add(owner["run_id"])
        stop(owner["run_id"])


def _read_owner(path: Path) -> dict[str, Any] | None:
    """The content of a ``running.json``: the job's id, and the process that follows it; None if absent or broken."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(owner, dict) or not isinstance(owner.get("run_id"), str) or type(owner.get("owner")) is not int:
        return None
    return owner if owner["run_id"] else None


def _follows(owner: Mapping[str, Any]) -> bool:
    """Whether the named process is the one that wrote ``running.json``, not a later one with the same pid.

    It is if its start time matches the file's, or if it has the job's id.
    """
    try:
        process = psutil.Process(owner["owner"])
        began = process.create_time()
    except (psutil.Error, ValueError, OverflowError):
        return False
    with suppress(psutil.Error):  # the environment of another user's process cannot be read
        if owner["run_id"] in _ids(process.environ()):
            return True
    started = owner.get("started")
    # psutil counts from the boot time, which shifts a little when the clock is set
    return isinstance(started, int | float) and abs(began - started) < 2.0


def _memory(run_id: str) -> int:
    total = 0
    for process in processes_of(run_id):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def _die_with_parent() -> None:
    """Let the kernel kill the run's first process when this one is killed (Linux); Ray's processes then end too."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL("libc.so.6").prctl(set_parent_death_signal, signal.SIGKILL)


def _start_watcher(run_id: str) -> subprocess.Popen:
    """Start a process outside of the run that stops the run if this process is killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "saw.runs.process_tree", run_id, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def watch(run_id: str, owner: int, interval: float = 1.0) -> None:
    """Wait until a process is gone, then stop a run."""
    while psutil.pid_exists(owner) and os.getppid() == owner:
        time.sleep(interval)
    stop(run_id)


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]))
