"""The stages of a reproduction: commands that are skipped when they are done, and resumed when they are not.

A recipe lists commands. This module runs them so that finished stages are skipped, killed ones resume, and a stage is
never confused with one of another command.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from saw.machine import accelerator, cluster, environment
from saw.records import metrics_file
from saw.records.files import value_of, write_whole
from saw.report import step_line
from saw.runs.compose import NotComposed, compose
from saw.runs.process_tree import OWNER, JobFailed, TrainingJob, stop_job_in

HOUR = 3600.0
#: File in a training's folder that says which row of a table it belongs to.
CELL = "cell.json"
#: How the command of a training begins, and those of its overrides that may have any value.
TRAIN = ("-m", "saw.runs.train")
OF_ONE_TRAINING = ("data.seed=", "trainer.default_local_dir=", "trainer.experiment_name=")


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name (str): of its log and its marks.
        folder (Path): for these; the stages of a folder run one after another.
        command (tuple[str, ...]): Python's arguments, ``-m module ...``.
        hours (float): time limit.
        environment (Mapping[str, str]): added to this process's.
        trains (bool): it logs metrics, which are shown as they arrive.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    hours: float = 1.0
    environment: Mapping[str, str] = field(default_factory=dict)
    trains: bool = False

    @property
    def _mark(self) -> Path:
        return self.folder / f"{self.name}.done.json"

    @property
    def _started(self) -> Path:
        return self.folder / f"{self.name}.started.json"

    @property
    def _info(self) -> Path:
        return self.folder / "run.json"

    def line(self) -> str:
        """The command for a shell in which this Python's environment may not be active."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*variables, environment.python(), shlex.join(self.command)])

    def is_done(self) -> bool:
        """Whether it is finished.

        Another command may follow one that was killed before it made anything.

        Raises:
            SystemExit: if it was started or finished with another command, or if a mark is broken.
        """
        for mark in (self._mark, self._started):
            if mark.exists() and (earlier := _read(mark)["command"]) != list(self.command):
                ended = "finished" if mark == self._mark else "started"
                if ended == "started" and self._made_nothing():
                    continue
                raise SystemExit(
                    f"{self.folder} has a stage {self.name} that was {ended} with another command:\n"
                    f"  there: {shlex.join(earlier)}\n  asked: {shlex.join(self.command)}\n"
                    "remove the folder, or choose another: --out, or for a study SAW_RUNS"
                )
        return self._mark.exists()

    def outcome(self) -> dict[str, Any]:
        """The cost of a finished stage: ``seconds``, and ``peak_bytes`` of memory over all its processes.

        Raises:
            SystemExit: if its mark is broken.
        """
        return _read(self._mark, "seconds", "peak_bytes")

    def _made_nothing(self) -> bool:
        """Whether its folder holds nothing but what this module writes before a stage, and no process works there."""
        logs = {self.job.log.name, *(log.name for log in metrics_file.parts(self.job.log))}
        own = {self._started.name, OWNER, CELL, *logs}
        return {path.name for path in self.folder.iterdir()} <= own and not self.job.is_followed()

    def forget(self) -> None:
        """Remove its marks, as if it had never started."""
        for mark in (self._mark, self._started):
            mark.unlink(missing_ok=True)

    @property
    def job(self) -> TrainingJob:
        """The job that runs it."""
        command = [sys.executable, *self.command]
        return TrainingJob(command, self.folder, self.hours * HOUR, self.environment, self.name, resume=True)

    def run(self, label: str = "") -> None:
        """Run it; ``label`` is printed before each step's line.

        Raises:
            JobFailed: if it fails or hits its time limit.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier, is_first = _written(self._info), not self._started.exists()
        write_whole(self._started, json.dumps({"command": self.command}) + "\n")
        started = time.monotonic()
        job = self.job
        try:
            self._follow(job, earlier, label)
        except BaseException:  # Ctrl-C too
            made_nothing = _written(self._info) == earlier and not job.owner.exists()  # nor is it being made
            if self.trains and is_first and made_nothing:
                self._started.unlink(missing_ok=True)  # another command may follow
            raise
        seconds = round(time.monotonic() - started, 1)
        write_whole(
            self._mark,
            json.dumps({"command": self.command, "seconds": seconds, "peak_bytes": job.peak_bytes}) + "\n",
        )

    def _follow(self, job: TrainingJob, earlier: int | None, label: str) -> None:
        """Run the job; a training shows each step, and is checked at the end."""
        if self.trains:
            with tqdm(desc=f"    {self.name}", unit="step", leave=False, disable=None) as bar:
                bar.set_postfix_str("starting Ray, vLLM and the workers")

                def on_step(step: int, metrics: dict[str, Any]) -> None:
                    """Advance the bar, and print the step's line."""
                    if bar.total is None and (total := self._total_steps()):  # now the bar can estimate the time left
                        bar.total = total
                        bar.set_postfix_str("")
                        bar.update(step - 1 - bar.n)
                    if any(key.startswith("saw/") for key in metrics):
                        bar.write(f"    {label}{step_line(step, metrics)}")
                        bar.update(1)

                job.follow(on_step)
            self._check_steps(job, earlier)
        else:
            job.finish()

    def _check_steps(self, job: TrainingJob, earlier: int | None) -> None:
        """Check that all steps were logged: a training that is stopped while Ray starts ends with exit code 0 too.

        Args:
            job (TrainingJob): the one that has ended.
            earlier (int | None): when ``run.json`` was last written before it. A training writes it before its first
                step; without it, the folder's steps are those of an earlier training.

        Raises:
            JobFailed: if not, or if it can't be known.
        """
        if _written(self._info) == earlier:
            raise JobFailed(f"ended before its first step; {job.log_end()}")
        total = self._total_steps()
        try:
            last = max(metrics_file.read(job.metrics), default=0)
        except ValueError as error:
            raise JobFailed(str(error)) from None
        if total is None or last < total:
            of = f"of {total}" if total else f"of an unknown number: {self._info} has no total_steps"
            raise JobFailed(f"ended after step {last} {of}; {job.log_end()}")

    def _total_steps(self) -> int | None:
        """The steps of the training that ``run.json`` describes; None if there is none, or a broken one."""
        try:
            total = json.loads(self._info.read_text())["total_steps"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return total if type(total) is int else None

    def stop(self) -> None:
        """Stop it if another thread of this process runs it; it fails there."""
        stop_job_in(self.folder)


def _read(mark: Path, *numbers: str) -> dict[str, Any]:
    """The content of a mark: its stage's command, and the named numbers.

    Raises:
        SystemExit: naming the mark, if it is broken.
    """
    try:
        found = value_of(mark.read_bytes())
    except OSError as fault:
        found = fault
    command = found.get("command") if isinstance(found, dict) else None
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        wrong = "no command" if not isinstance(found, Exception) else str(found)
    elif absent := [name for name in numbers if not isinstance(found.get(name), int | float)]:
        wrong = f"no {' and no '.join(absent)}"
    else:
        return found
    raise SystemExit(f"{mark} is broken ({wrong}); remove it and run the same command again, which repeats the stage")


def _written(path: Path) -> int | None:
    """When a file was last written, in nanoseconds; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def run_all(
    shared: Sequence[Stage],
    chains: Mapping[str, Sequence[Stage]],
    last: Callable[[], None],
    parallel: int = 1,
) -> None:
    """Run the shared stages, then the chains, ``parallel`` at a time, then ``last``.

    A chain that fails ends, and the others continue, so that one failure does not cost a night of trainings. Chains
    that run at the same time have GPUs of their own.

    Raises:
        SystemExit: at the start, if they have too few GPUs; at the end, naming what failed.
        KeyboardInterrupt: re-raised after all processes have been stopped.
    """
    check(shared, chains)
    slots = _slots(chains, parallel)
    try:
        for stage in shared:
            _run(stage)
    except JobFailed as failure:
        raise SystemExit(f"the stage failed: {failure}") from None
    failures: dict[str, str] = {}
    stopping = Event()
    free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def run_chain(name: str, stages: Sequence[Stage]) -> None:
        """Run the stages of a chain until one fails, and keep why it did."""
        label = f"{name}: " if parallel > 1 else ""
        slot = free.get()  # never waits: there are as many as threads
        try:
            for stage in stages:
                _run(replace(stage, environment={**stage.environment, **slot}), label)
        except (JobFailed, SystemExit) as failure:  # SystemExit: a mark was changed meanwhile
            failures[name] = str(failure)
            if not stopping.is_set():
                print(f"    {label}failed: {failure}", flush=True)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots)) as pool:
        running = [pool.submit(run_chain, name, stages) for name, stages in chains.items()]
        try:
            for chain in running:
                chain.result()
        except BaseException:  # an interrupt too: no process may be left behind; raised again below
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(chain.done() for chain in running):  # repeatedly: one may be about to start
                for stages in chains.values():
                    for stage in stages:
                        stage.stop()
                time.sleep(0.2)
            raise
    last()
    if failures:
        raise SystemExit(
            f"{len(failures)} of {len(chains)} failed: {', '.join(failures)}; rerun the same command to resume"
        )


def check(shared: Sequence[Stage], chains: Mapping[str, Sequence[Stage]]) -> None:
    """Check, before anything runs, that each stage can start, as far as its command tells.

    Raises:
        SystemExit: if one was started or finished with another command, or if the configuration of a training can't be
            composed, or logs no metrics to a file.
    """
    for stages in (shared, *chains.values()):
        for stage in stages:
            if not stage.is_done() and _is_training(stage):
                _check_logger(stage)


def _slots(chains: Mapping[str, Sequence[Stage]], parallel: int) -> list[dict[str, str]]:
    """Variables for each of the chains that run at the same time: its own GPUs, if they train on this machine's.

    Without them, the private Ray cluster of each training would start with the machine's first GPU.

    Raises:
        SystemExit: if there are too few GPUs, or accelerators that ``CUDA_VISIBLE_DEVICES`` does not divide.
    """
    unfinished = [stages for stages in chains.values() if not all(stage.is_done() for stage in stages)]
    count = min(parallel, len(unfinished))
    if count < 2:
        return [{}] * parallel
    each = max((_gpus(stage) for stages in unfinished for stage in stages if _is_training(stage)), default=0)
    if each == 0:
        return [{}] * parallel
    found = accelerator.probe()
    if found.usable and found.torch_cuda is None:
        raise SystemExit(
            f"--parallel is {parallel}; expected 1 on {accelerator.describe(found.devices)}: only CUDA's GPUs can be "
            "divided among trainings"
        )
    names = accelerator.visible(found)
    if len(names) < count * each:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        limited = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        fits = len(names) // each
        remedy = f"use --parallel {fits}" if fits else f"that is too few for one, which needs {each}"
        raise SystemExit(
            f"--parallel is {parallel}: {count} trainings at a time need {count} x {each} GPUs, and torch can use "
            f"{len(names)} of this machine{limited}; {remedy}"
        )
    groups = (names[first : first + each] for first in range(0, count * each, each))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def _is_training(stage: Stage) -> bool:
    return stage.command[: len(TRAIN)] == TRAIN


def _gpus(stage: Stage) -> int:
    """GPUs of this machine that a training takes; 0 on the CPU, and on a running Ray cluster, which assigns its own.

    Raises:
        SystemExit: if its configuration can't be composed, or has an invalid count or address.
    """
    config = _configuration(stage)
    try:
        return 0 if config.trainer.device == "cpu" or cluster.running(config) else cluster.gpus(config)
    except ValueError as fault:
        raise SystemExit(f"the training {stage.folder.name} can't start: {fault}") from None


def _check_logger(stage: Stage) -> None:
    given = _configuration(stage).trainer.logger
    logger = [given] if isinstance(given, str) else [str(name) for name in given or ()]
    if "file" not in logger:
        raise SystemExit(
            f"trainer.logger is {logger}; expected 'file' in it, for example "
            f"trainer.logger=[{','.join([*logger, 'file'])}]: the training {stage.folder.name} is followed and "
            "reported by the metrics in its file"
        )


def _configuration(stage: Stage) -> DictConfig:
    """The configuration of a training, without what only one training has.

    Raises:
        SystemExit: if it can't be composed.
    """
    variables = {**os.environ, **stage.environment}
    overrides = (text for text in stage.command[len(TRAIN) :] if not text.startswith(OF_ONE_TRAINING))
    try:
        return _composed(f"platform={accelerator.decide(variables).name}", *overrides)
    except (NotComposed, accelerator.AcceleratorError, ModuleNotFoundError) as fault:
        raise SystemExit(f"the training {stage.folder.name} can't start: {fault}") from None


_composed = functools.cache(compose)  # reading the configuration's files takes a third of a second


def _run(stage: Stage, label: str = "") -> None:
    print(f"==> {os.path.relpath(stage.folder)}: {stage.name}", flush=True)
    if stage.is_done():
        print(f"    {label}already done, skipped", flush=True)
        return
    print(f"    {stage.line()}", flush=True)
    started = time.monotonic()
    stage.run(label)
    print(f"    {label}{time.monotonic() - started:.0f} s", flush=True)


def show(shared: Sequence[Stage], chains: Mapping[str, Sequence[Stage]]) -> None:
    """Print every command that would run, and mark the finished ones."""
    for stages in (shared, *chains.values()):
        for stage in stages:
            print(f"# {stage.folder.name}: {stage.name}{' (done)' if stage.is_done() else ''}\n{stage.line()}")


def gpus_of_a_node() -> int:
    """GPUs of this machine that a training could use."""
    return len(accelerator.probe().usable_devices)


def gpus_of_the_cluster() -> int:
    """GPUs of the Ray cluster that RAY_ADDRESS names.

    Raises:
        ValueError: if it can't be reached.
    """
    return int(sum(node.gpus for node in cluster.nodes_of_the_cluster()))
