"""Evaluate a checkpoint with BFCL v4: start a vLLM server, ask and score in BFCL's environment, several times.

    python -m recipes.toolrl.evaluate --model runs/toolrl/CELL/hf --out runs/toolrl/CELL/bfcl

Needs ``bash scripts/setup.sh --bfcl``. What is answered is not asked again: a run that was killed goes on where it
stopped. ``evaluation.json`` holds, for each run, right answers a category, BFCL's own overall accuracy, and how many
replies have the format that the model was trained to.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.serve import SERVED, server
from recipes.toolrl.scores import CATEGORIES, scores
from saw.launch import Job, RunFailed
from saw.provenance import commit, machine, versions
from saw.rewards.toolrl import format_reward

#: Seconds for one run's questions, multi-turn ones take hours; for its scores.
ASKING_LIMIT, SCORING_LIMIT = 12 * 3600, 3600
ROOT = Path(__file__).resolve().parents[2]


def bfcl_python() -> Path:
    """The interpreter of BFCL's environment.

    Raises:
        SystemExit: if there is none.
    """
    folder = Path(os.environ.get("SAW_BFCL_VENV", f"{os.environ.get('SAW_VENV', sys.prefix)}-bfcl"))
    if not (folder / "bin" / "python").exists():
        raise SystemExit(f"no environment for BFCL in {folder}: bash scripts/setup.sh --bfcl makes it")
    return folder / "bin" / "python"


def bfcl(what: str, folder: Path, arguments: list[str], time_limit: float) -> None:
    """Generate or score one run in BFCL's environment."""
    command = [str(bfcl_python()), "-m", "recipes.toolrl.bfcl", what, *arguments]
    environment = {"BFCL_PROJECT_ROOT": str(folder.resolve()), "PYTHONPATH": str(ROOT)}
    Job(command, folder, time_limit, environment, name=what).finish()


def format_counts(folder: Path) -> dict[str, int]:
    """How many of a run's replies have the trained format: a thought, then calls, a response, or both; nothing else."""
    counts = {"correct": 0, "replies": 0}
    for path in folder.rglob("*_result.json"):
        for line in path.read_text().splitlines():
            for reply in _replies(json.loads(line)["result"]):
                counts["replies"] += 1
                counts["correct"] += is_format_correct(reply)
    return counts


def _replies(result: Any) -> Iterator[str]:
    if isinstance(result, list):
        for part in result:
            yield from _replies(part)
    else:
        yield result


def is_format_correct(reply: str) -> bool:
    """Whether a reply has the form that the training's format reward asks of the parts that are in it."""
    has_part = "<tool_call>" in reply or "<response>" in reply
    return has_part and format_reward(reply.strip(), reply) == 1.0


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what is not done yet, and write ``evaluation.json``."""
    out: Path = arguments.out
    settings = {
        "model": str(arguments.model),
        "runs": arguments.runs,
        "temperature": arguments.temperature,
        "max_tokens": arguments.max_tokens,
        "categories": arguments.categories,
        "limit": arguments.limit,
    }
    _claim(out, settings)
    python = bfcl_python()
    folders = [out / f"run{number}" for number in range(1, arguments.runs + 1)]
    which = ["--categories", *arguments.categories]
    which += ["--limit", str(arguments.limit)] if arguments.limit is not None else []
    open_runs = [folder for folder in folders if not (folder / "scores.json").exists()]
    if open_runs:
        print(f"asking in {python.parents[1]}, {len(open_runs)} of {arguments.runs} runs to do", flush=True)
        with _server_of(arguments) as (address, model):
            asking = ["--server", address, "--model", model, "--threads", str(arguments.threads)]
            asking += ["--temperature", str(arguments.temperature), "--max-tokens", str(arguments.max_tokens)]
            for folder in open_runs:
                started = time.monotonic()
                bfcl("generate", folder, [*asking, *which], ASKING_LIMIT)
                print(f"{folder.name}: asked in {time.monotonic() - started:.0f} s", flush=True)
    for folder in open_runs:
        bfcl("score", folder, which, SCORING_LIMIT)
    runs = []
    for folder in folders:
        run = json.loads((folder / "scores.json").read_text())
        runs.append({**run, "format": format_counts(folder / "result")})
    result = {
        "settings": settings,
        "runs": runs,
        "provenance": {
            "command": f"python -m recipes.toolrl.evaluate {shlex.join(sys.argv[1:])}",
            "commit": commit(),
            "machine": machine(),
            "versions": f"{runs[0]['package']}, {versions('vllm', 'torch', 'transformers')}",
        },
    }
    (out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


@contextmanager
def _server_of(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if arguments.server:
        yield arguments.server, arguments.served_model
    else:
        with server(str(arguments.model), arguments.out, arguments.gpus, arguments.vllm) as address:
            yield address, SERVED


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Write down what the folder is for.

    Raises:
        SystemExit: if it is for something else.
    """
    path = out / "settings.json"
    if path.exists():
        stands = json.loads(path.read_text())
        for key, value in settings.items():
            if key != "runs" and stands.get(key) != value:
                there = f"{out} holds an evaluation with {key} {stands.get(key)}, not {value}"
                raise SystemExit(f"{there}; remove it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or name")
    parser.add_argument("--out", type=Path, required=True, help="folder for replies and scores")
    parser.add_argument("--runs", type=int, default=4, help="times that every item is asked (4)")
    parser.add_argument("--temperature", type=float, default=0.001, help="of the replies (0.001, BFCL's own)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of a reply (4096, BFCL's own)")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES), choices=CATEGORIES, metavar="CATEGORY")
    parser.add_argument("--limit", type=int, help="only the first items of each category; for rehearsals")
    parser.add_argument("--threads", type=int, default=100, help="requests in flight (100)")
    parser.add_argument("--gpus", type=int, default=1, help="copies of the model, a GPU each; 0: on the CPU")
    parser.add_argument("--server", help="an OpenAI-compatible server that runs already, http://HOST:PORT/v1")
    parser.add_argument("--served-model", default=SERVED, help="the model's name there")
    parser.add_argument("--vllm", nargs=argparse.REMAINDER, default=[], help="last: options for `vllm serve`")
    arguments = parser.parse_args()
    for key in ("runs", "max_tokens", "threads"):
        if getattr(arguments, key) < 1:
            parser.error(f"--{key.replace('_', '-')} is {getattr(arguments, key)}; expected at least 1")
    try:
        result = evaluate(arguments)
    except RunFailed as failure:
        raise SystemExit(f"the evaluation failed, and goes on if it is called again: {failure}") from None
    if set(arguments.categories) == set(CATEGORIES):
        for number, run in enumerate(result["runs"], start=1):
            parts = "  ".join(f"{name} {value:.2f}" for name, value in scores(run["categories"]).items())
            print(f"run {number}: {parts}")
    print(f"{arguments.out / 'evaluation.json'}")


if __name__ == "__main__":
    main()
