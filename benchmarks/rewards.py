"""Responses per second of ToolRL's rewards, and how the time grows with the length of the response.

    python -m benchmarks.rewards

Three kinds of response per length: a long thought with the right call, many calls, and an unclosed block that no
pattern matches (the worst case for a careless regular expression).
"""

from __future__ import annotations

import argparse
import statistics
import time

from saw.records.provenance import commit, machine
from saw.rewards import toolrl

CALL = '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'
TRUTH = f"<think> t </think>\n<tool_call>\n{CALL}\n</tool_call>"
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def responses(size: int) -> dict[str, str]:
    """Responses of about ``size`` characters."""
    return {
        "long thought": f"<think> {'word ' * (size // 5)}</think>\n<tool_call>\n{CALL}\n</tool_call>",
        "many calls": "<think> t </think>\n<tool_call>\n" + f"{CALL}\n" * (size // len(CALL)) + "</tool_call>",
        "unclosed": "<think> t </think>\n<tool_call>\n" + "</think>\n" * (size // 9),
    }


def seconds(response: str, budget: float = 0.5) -> float:
    """Median time to score a response, measured for ``budget`` seconds."""
    times: list[float] = []
    while sum(times) < budget or len(times) < 3:
        started = time.perf_counter()
        toolrl.score(response, TRUTH, {"length": True})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{machine('cpu')}; commit {commit()}; median within 0.5 s; no seed, nothing is random\n")
    print("| response | characters | us | responses per second | ns per character |\n|---|---:|---:|---:|---:|")
    for size in SIZES:
        for kind, response in responses(size).items():
            value = seconds(response)
            cells = f"{value * 1e6:.0f} | {1 / value:.0f} | {value / len(response) * 1e9:.1f}"
            print(f"| {kind} | {len(response)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
