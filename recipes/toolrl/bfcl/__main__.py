"""One run of BFCL v4: ask a model, then score what it said. Called by recipes.toolrl.evaluate, in BFCL's environment.

    python -m recipes.toolrl.bfcl generate --server http://127.0.0.1:8000/v1 --model NAME --categories multiple parallel
    python -m recipes.toolrl.bfcl score --categories multiple parallel

Results and scores go below the folder that BFCL_PROJECT_ROOT names. Items that are answered are not asked again.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Why a reply is missing: the request was wrong (too long for the model), and would be so again.
REFUSED = "BadRequestError"
#: What BFCL writes instead of a reply when a request fails, whatever the reason.
FAILED = "Error during inference"


def generate(arguments: argparse.Namespace, root: Path) -> None:
    """Ask for every item that has no reply.

    Raises:
        SystemExit: if requests failed for another reason than the item; those items stay open, and a repeated command
            asks them again.
    """
    from bfcl_eval._llm_response_generation import main

    from recipes.toolrl.bfcl.handler import NAME, register

    register(arguments.server, arguments.model, arguments.max_tokens)
    _forget_failures(root, NAME)
    if arguments.limit is not None:
        (root / "test_case_ids_to_generate.json").write_text(json.dumps(_first(arguments.categories, arguments.limit)))
    main(
        argparse.Namespace(
            model=[NAME],
            test_category=list(arguments.categories),
            temperature=arguments.temperature,
            include_input_log=False,
            exclude_state_log=True,
            num_threads=arguments.threads,
            num_gpus=1,
            backend="vllm",
            gpu_memory_utilization=0.9,
            result_dir=None,
            run_ids=arguments.limit is not None,
            allow_overwrite=False,
            skip_server_setup=True,
            local_model_path=None,
            lora_modules=None,
            enable_lora=False,
            max_lora_rank=None,
        )
    )
    failures = _forget_failures(root, NAME)
    if failures:
        raise SystemExit(f"{len(failures)} items failed and stay open; the first: {failures[0]}")


def score(arguments: argparse.Namespace, root: Path) -> None:
    """Score the replies with BFCL's own checkers, and write ``scores.json``."""
    from bfcl_eval.eval_checker.eval_runner import main

    from recipes.toolrl.bfcl.handler import NAME, register

    register()
    main([NAME], list(arguments.categories), None, None, partial_eval=arguments.limit is not None)
    scores = {}
    for category in arguments.categories:
        files = list((root / "score" / NAME).rglob(f"BFCL_v4_{category}_score.json"))
        if len(files) != 1:
            raise SystemExit(f"BFCL wrote {len(files)} score files for {category} below {root / 'score'}; expected 1")
        with files[0].open() as file:
            head = json.loads(file.readline())
        scores[category] = {"correct": head["correct_count"], "total": head["total_count"]}
    content = {
        "package": f"bfcl-eval {version('bfcl-eval')}",
        "categories": scores,
        "package_overall": _package_overall(root / "score" / "data_overall.csv"),
    }
    (root / "scores.json").write_text(json.dumps(content, indent=2) + "\n")


def _first(categories: list[str], limit: int) -> dict[str, list[str]]:
    """Ids of the first items of each category."""
    from bfcl_eval.utils import load_dataset_entry

    return {category: [entry["id"] for entry in load_dataset_entry(category)[:limit]] for category in categories}


def _forget_failures(root: Path, name: str) -> list[str]:
    """Take the items out of the result files of which BFCL wrote down an error that was not the item's own fault."""
    failures = []
    for path in sorted((root / "result" / name).rglob("*_result.json")):
        lines = path.read_text().splitlines()
        kept = []
        for line in lines:
            entry = json.loads(line)
            if _failed(entry) and REFUSED not in entry.get("traceback", ""):
                failures.append(f"{entry['id']}: {entry['result']}")
            else:
                kept.append(line)
        if len(kept) < len(lines):
            unfinished = path.with_name(path.name + ".unfinished")
            unfinished.write_text("".join(f"{line}\n" for line in kept))
            unfinished.replace(path)
    return failures


def _failed(entry: dict[str, Any]) -> bool:
    return isinstance(entry["result"], str) and entry["result"].startswith(FAILED) and "traceback" in entry


def _package_overall(path: Path) -> float:
    """BFCL's own overall accuracy of our one model, in per cent; categories that were not run count 0 there."""
    import pandas

    return float(str(pandas.read_csv(path)["Overall Acc"][0]).rstrip("%"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    asking = commands.add_parser("generate")
    asking.set_defaults(do=generate)
    asking.add_argument("--server", required=True)
    asking.add_argument("--model", required=True, help="its name at the server")
    asking.add_argument("--temperature", type=float, required=True)
    asking.add_argument("--max-tokens", type=int, required=True)
    asking.add_argument("--threads", type=int, required=True, help="requests in flight")
    scoring = commands.add_parser("score")
    scoring.set_defaults(do=score)
    for command in (asking, scoring):
        command.add_argument("--categories", nargs="+", required=True)
        command.add_argument("--limit", type=int, help="only the first items of each category")
    arguments = parser.parse_args()
    if "BFCL_PROJECT_ROOT" not in os.environ:
        parser.error("BFCL_PROJECT_ROOT must name the folder for results and scores; else BFCL writes beside itself")
    root = Path(os.environ["BFCL_PROJECT_ROOT"])
    root.mkdir(parents=True, exist_ok=True)
    arguments.do(arguments, root)


if __name__ == "__main__":
    main()
