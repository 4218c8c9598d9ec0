"""Evaluate a checkpoint with BFCL v4: start a vLLM server, ask and score in BFCL's environment, several times.

    python -m recipes.toolrl.evaluate --model runs/toolrl/CELL/hf --out runs/toolrl/CELL/bfcl

Needs ``bash scripts/setup.sh --bfcl``. Answered items are not asked again: a killed run resumes where it stopped.
``evaluation.json`` holds, for each run, the correct answers per category, BFCL's overall accuracy, how many replies
have the trained format, and how many items the server refused (HTTP 400, mostly because they are too long for the
model), which BFCL counts as wrong answers. If the server refuses more than ``--max-refused`` of a run's items with
their first request, or all of a category, the evaluation stops with the server's message.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.common import evaluation
from recipes.common.serve import SERVED, server
from recipes.toolrl.bfcl import results
from recipes.toolrl.scores import CATEGORIES, scores
from saw.records.provenance import versions
from saw.rewards.toolrl import format_reward
from saw.runs.process_tree import Job, JobFailed

#: Time limits in seconds for one run's questions (multi-turn ones take hours) and for scoring them.
ASKING_LIMIT, SCORING_LIMIT = 12 * 3600, 3600
ROOT = Path(__file__).resolve().parents[2]


def bfcl_python() -> Path:
    """The interpreter of BFCL's environment.

    Raises:
        SystemExit: if there is none.
    """
    folder = Path(os.environ.get("SAW_BFCL_VENV", ROOT / ".venv-bfcl"))
    if not (folder / "bin" / "python").exists():
        raise SystemExit(f"no environment for BFCL in {folder}: bash scripts/setup.sh --bfcl makes it")
    return folder / "bin" / "python"


def bfcl(what: str, folder: Path, arguments: list[str], time_limit: float) -> None:
    """Generate or score one run in BFCL's environment."""
    command = [str(bfcl_python()), "-m", "recipes.toolrl.bfcl", what, *arguments]
    environment = {"BFCL_PROJECT_ROOT": str(folder.resolve()), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    Job(command, folder, time_limit, environment, name=what).finish()


def format_counts(folder: Path) -> dict[str, int]:
    """How many of a run's replies have the trained format: a thought, then calls, a response, or both; nothing else.

    Items that the server refused have no reply.
    """
    counts = {"correct": 0, "replies": 0}
    for reply in results.replies(folder):
        counts["replies"] += 1
        counts["correct"] += is_format_correct(reply)
    return counts


def is_format_correct(reply: str) -> bool:
    """Whether a reply has the format that the training's format reward requires for the parts that it has."""
    has_part = "<tool_call>" in reply or "<response>" in reply
    return has_part and format_reward(reply.strip(), reply) == 1.0


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what is missing, and write ``evaluation.json``."""
    out: Path = arguments.out
    settings = {
        "model": str(arguments.model),
        "runs": arguments.runs,
        "sampling": arguments.sampling.as_dict(),
        "seeds": "a hash of the run's number and the messages",
        "multi_turn_sentence": arguments.multi_turn_sentence,
        "max_refused": arguments.max_refused,
        "categories": arguments.categories,
        "limit": arguments.limit,
    }
    evaluation.claim(out, settings, free=("runs", "max_refused"))
    python = bfcl_python()
    folders = [out / f"run{number}" for number in range(1, arguments.runs + 1)]
    which = ["--categories", *arguments.categories]
    which += ["--limit", str(arguments.limit)] if arguments.limit is not None else []
    open_runs = [folder for folder in folders if not (folder / "scores.json").exists()]
    if open_runs:
        print(f"asking in {python.parents[1]}, {len(open_runs)} of {arguments.runs} runs to do", flush=True)
        with _server_of(arguments) as (address, model):
            asking = ["--server", address, "--model", model, "--threads", str(arguments.threads)]
            asking += [*arguments.sampling.options(), "--max-refused", str(arguments.max_refused)]
            asking += ["--multi-turn-sentence"] if arguments.multi_turn_sentence else []
            for folder in open_runs:
                started = time.monotonic()
                seed = ["--seed", str(folders.index(folder) + 1)]
                bfcl("generate", folder, [*asking, *seed, *which], ASKING_LIMIT)
                print(f"{folder.name}: asked in {time.monotonic() - started:.0f} s", flush=True)
    for folder in open_runs:
        bfcl("score", folder, which, SCORING_LIMIT)
    runs = []
    for folder in folders:
        run = json.loads((folder / "scores.json").read_text())
        answers = folder / "result"
        runs.append({**run, "format": format_counts(answers), "refused": results.refusals(answers)})
    software = f"{runs[0]['package']}, {versions('vllm', 'torch', 'transformers')}"
    return evaluation.write(out, "recipes.toolrl.evaluate", software, settings, runs)


@contextmanager
def _server_of(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if arguments.server:
        yield arguments.server, arguments.served_model
    else:
        with server(str(arguments.model), arguments.out, arguments.gpus, arguments.vllm) as address:
            yield address, SERVED


def main() -> None:
    """Command line."""
    parser = evaluation.parser(__doc__, temperature=0.001, max_tokens=4096, why="BFCL's own", threads=100)
    parser.add_argument(
        "--multi-turn-sentence",
        action="store_true",
        help="in multi-turn items, add ToolRL's sentence for several turns to the user's words; its released handler "
        "adds the single-turn sentence there too, because the stock package does not tell it the kind of an item",
    )
    parser.add_argument(
        "--max-refused",
        type=float,
        default=0.1,
        help="share of a run's items that the server may refuse with the first request (0.1); above it, or if it "
        "refuses all items of a category, the evaluation stops; 1 accepts everything except a run without any reply",
    )
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES), choices=CATEGORIES, metavar="CATEGORY")
    parser.add_argument(
        "--server",
        help="a running server, http://HOST:PORT/v1; it must support vLLM's top_k, min_p and repetition_penalty "
        "besides OpenAI's parameters",
    )
    parser.add_argument("--served-model", default=SERVED, help="the model's name there")
    arguments = evaluation.parse(parser)
    if not 0 <= arguments.max_refused <= 1:
        parser.error(f"--max-refused is {arguments.max_refused}; expected a share between 0 and 1")
    try:
        result = evaluate(arguments)
    except JobFailed as failure:
        raise SystemExit(f"the evaluation failed; rerun the same command to resume: {failure}") from None
    if set(arguments.categories) == set(CATEGORIES):
        for number, run in enumerate(result["runs"], start=1):
            parts = "  ".join(f"{name} {value:.2f}" for name, value in scores(run["categories"]).items())
            print(f"run {number}: {parts}")
    for number, run in enumerate(result["runs"], start=1):
        if refused := run["refused"]["items"]:
            total = sum(count["total"] for count in run["categories"].values())
            print(f"run {number}: the server refused {refused} of {total} items, which count as wrong")
    print(f"{arguments.out / 'evaluation.json'}")


if __name__ == "__main__":
    main()
