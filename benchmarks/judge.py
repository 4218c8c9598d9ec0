"""10,000 questions to a judge of known latency, without faults and with 30 % faults: throughput, verdicts, memory.

    python -m benchmarks.judge [--questions 10000] [--in-flight 64] [--latency 1.0]

The server (recipes.tldr.stand_in_judge) is a separate process. The limit on requests in flight allows
``in_flight / occupancy`` requests per second: an answer occupies a slot for the latency, a request that hangs for the
client's time limit. The efficiency in the table is the share of this rate that is reached.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import socket
import subprocess
import sys
import time
from typing import Any

import psutil
import requests

from recipes.tldr.stand_in_judge import RUBRIC, scores
from saw.records.provenance import commit, machine
from saw.rewards.judge import Judge, JudgeOptions, Verdict, prompt

#: Faults that occupy a request slot until the client times out.
HANGING = ("never_ends", "slow_drip")


def fields(number: int) -> dict[str, str]:
    """One question; no two are the same."""
    words = [f"w{number}", "the", "dog", "ran", "away"]
    return {
        "reddit_text": f"Post {number}. " + "It was a long day. " * 60,
        "human_summary": " ".join(words),
        "model_summary": " ".join(words[: number % 6] + ["so"] * (number % 4)),
    }


def check(judge: Judge, verdicts: list[Verdict]) -> int:
    """Check that each verdict is right or missing, and return how many are missing.

    Raises:
        AssertionError: if a score is neither.
    """
    missing = 0
    for number, verdict in enumerate(verdicts):
        if verdict.fault is not None:
            missing += 1
            assert all(math.isnan(score) for score in verdict.scores.values())
        else:
            assert verdict.scores == scores(prompt.fill(judge.template, fields(number)))
    return missing


async def ask(judge: Judge, number: int, memory: list[int]) -> tuple[list[Verdict], float]:
    """Ask everything at once; return the verdicts and the seconds until the last."""
    started = time.monotonic()
    tasks = [asyncio.ensure_future(judge.score(fields(i))) for i in range(number)]
    while not all(task.done() for task in tasks):
        memory.append(psutil.Process().memory_info().rss)
        await asyncio.sleep(1.0)
    ended = time.monotonic()
    await judge.close()
    return [task.result() for task in tasks], ended - started


def measure(arguments: argparse.Namespace, faults: float) -> dict[str, Any]:
    """One row of the table."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "recipes.tldr.stand_in_judge", "--port", str(port)]
    server = subprocess.Popen([*command, "--latency", str(arguments.latency), "--faults", str(faults)])
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                requests.get(f"{address}/stats", timeout=5)
                break
            except requests.RequestException:
                time.sleep(0.2)
        limits = {"in_flight": arguments.in_flight, "timeout": arguments.timeout, "attempts": 8, "longest_wait": 5.0}
        judge = Judge(JudgeOptions.of({**RUBRIC, "model": "stand-in", "base_url": f"{address}/v1", **limits}))
        memory: list[int] = []
        verdicts, seconds = asyncio.run(ask(judge, arguments.questions, memory))
        stats = requests.get(f"{address}/stats", timeout=5).json()
    finally:
        server.kill()
        server.wait()
    counts = stats["counts"]
    hanging = sum(counts.get(fault, 0) for fault in HANGING)
    busy = (sum(counts.values()) - hanging) * arguments.latency + hanging * arguments.timeout
    early, late = memory[len(memory) // 4], max(memory)
    return {
        "faults": f"{faults:.0%}",
        "questions": arguments.questions,
        "requests": sum(counts.values()),
        "right": arguments.questions - check(judge, verdicts),
        "missing": sum(verdict.fault is not None for verdict in verdicts),
        "seconds": f"{seconds:.1f}",
        "questions per second": f"{arguments.questions / seconds:.0f}",
        "efficiency": f"{busy / (arguments.in_flight * seconds):.1%}",
        "most in flight": stats["most_in_flight"],
        "memory at a quarter, most (MiB)": f"{early / 2**20:.0f}, {late / 2**20:.0f}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds per answer")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds until the client gives up on a request")
    arguments = parser.parse_args()
    print(f"{machine('cpu')}; commit {commit()}; seed of the faults 0")
    print(f"{arguments.in_flight} in flight, {arguments.latency} s per answer\n")
    for row, faults in enumerate((0.0, 0.3)):
        measured = measure(arguments, faults)
        if row == 0:
            print(f"| {' | '.join(measured)} |\n|{'---:|' * len(measured)}")
        print(f"| {' | '.join(map(str, measured.values()))} |", flush=True)


if __name__ == "__main__":
    main()
