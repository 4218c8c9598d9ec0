"""Time and memory of the advantage computation, compared with verl's own estimators and one plain multiply.

    python -m benchmarks.advantage [--device cuda] [--sizes 2048x1024,32768x1024] [--objectives 2,8]

Every case allocates its output, as in training, and alternates with the others, so that all run under the same
conditions; times are medians. Extra memory is the peak above the inputs, in (N, T) float32 tensors, measured by torch's
profiler on a CPU and its allocator on a GPU.

On a CPU, a new tensor takes longer if the C library has to ask the system for its memory. Whether it does depends on
what the process did before, so both cases are measured, each in a process of its own: memory that is kept, and memory
that is fresh.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import saw
from saw.records.provenance import commit, machine, versions

VERL = importlib.util.find_spec("verl") is not None
METHODS = ("grpo", "gdpo", "saw_grpo", "saw_gdpo")
#: Variables that make glibc keep the memory of freed tensors, or return all of it.
MEMORY = {
    "kept": {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)},
    "fresh": {"MALLOC_MMAP_THRESHOLD_": str(2**17)},
}


@dataclass
class Inputs:
    """One step's batch: N samples in groups of four, responses of 1 to T tokens."""

    rewards: Tensor
    groups: np.ndarray
    mask: Tensor
    token_rewards: Tensor


def make_inputs(n: int, t: int, k: int, device: str) -> Inputs:
    """Random inputs; ids are strings and the mask is int64, as in verl."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, t + 1, (n, 1), generator=generator)
    mask = (torch.arange(t) < lengths).long()
    rewards = torch.rand(n, k, generator=generator)
    token_rewards = torch.zeros(n, t).scatter_(1, lengths - 1, rewards.sum(dim=1, keepdim=True))
    groups = np.array([f"prompt-{i // 4}" for i in range(n)], dtype=object)
    return Inputs(rewards.to(device), groups, mask.to(device), token_rewards.to(device))


def cases(inputs: Inputs) -> dict[str, Callable[[], object]]:
    """The functions to time, by name; verl's own estimators only if verl is installed."""

    def ours(method: str) -> Callable[[], object]:
        return lambda: saw.compute_advantage(inputs.rewards, inputs.groups, inputs.mask, method=method)

    return {
        "plain multiply": lambda: inputs.token_rewards * 2.0,
        **(_verls(inputs) if VERL else {}),
        **{f"saw {method}": ours(method) for method in METHODS},
    }


def _verls(inputs: Inputs) -> dict[str, Callable[[], object]]:
    from verl.trainer.ppo import core_algos

    given = inputs.token_rewards, inputs.mask, inputs.groups
    return {
        "verl grpo": lambda: core_algos.compute_grpo_outcome_advantage(*given),
        "verl grpo_vectorized": lambda: core_algos.compute_grpo_vectorized_outcome_advantage(*given),
    }


def measure_seconds(functions: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each function; the functions alternate, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            gc.collect()
            _wait(device)
            started = time.perf_counter()
            result = function()
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
            del result
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def measure_extra_bytes(function: Callable[[], object], device: str) -> int:
    """Peak memory of a call, including its result."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(size: str, objectives: int, memory: str, device: str, repeats: int) -> None:
    """Print the rows of one size, number of objectives and kind of memory."""
    torch.ones(2**29)  # 2 GiB: on a virtual machine, the first access to a page is slow
    n, t = map(int, size.split("x"))
    functions = cases(make_inputs(n, t, objectives, device))
    seconds = measure_seconds(functions, repeats, device)
    for name, value in seconds.items():
        extra = measure_extra_bytes(functions[name], device) / (n * t * 4)
        ratio = value / seconds["plain multiply"]
        print(f"| {size} | {objectives} | {memory} | {name} | {value * 1e3:.2f} | {ratio:.1f} | {extra:.2f} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", default="2048x1024,32768x1024", help="N x T, comma-separated")
    parser.add_argument("--objectives", default="2,8", help="K, comma-separated")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", choices=MEMORY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        measure(arguments.sizes, int(arguments.objectives), arguments.memory, arguments.device, arguments.repeats)
        return
    print(f"{machine(arguments.device)}; {versions('torch', 'verl')}; commit {commit()}; seed 0")
    without = "" if VERL else "; without verl's own estimators, as verl is not installed"
    print(f"median of {arguments.repeats}{without}\n")
    print("| N x T | K | memory | case | ms | times the multiply | extra (N, T) tensors |")
    print("|---|---:|---|---|---:|---:|---:|", flush=True)
    same = ["--device", arguments.device, "--repeats", str(arguments.repeats)]
    for size in arguments.sizes.split(","):
        for k in arguments.objectives.split(","):
            for memory in MEMORY if arguments.device == "cpu" else ("kept",):  # torch always keeps a GPU's memory
                command = [sys.executable, "-m", "benchmarks.advantage", "--sizes", size, "--objectives", k, *same]
                subprocess.run([*command, "--memory", memory], env=os.environ | MEMORY[memory], check=True)


if __name__ == "__main__":
    main()
