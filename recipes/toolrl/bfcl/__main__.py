"""One run of BFCL v4: ask a model, then score its replies. Called by recipes.toolrl.evaluate, in BFCL's environment.

    python -m recipes.toolrl.bfcl generate --server http://127.0.0.1:8000/v1 --model NAME --categories multiple parallel
    python -m recipes.toolrl.bfcl score --categories multiple parallel

Results and scores go below the folder that BFCL_PROJECT_ROOT names. Answered items are not asked again.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path

from recipes.common import sampling
from recipes.toolrl.bfcl import results
from saw.records.files import write_whole


def generate(arguments: argparse.Namespace, root: Path) -> None:
    """Ask for every item that has no reply.

    Raises:
        SystemExit: if requests failed for a reason other than the item, if the server refused too many items, or if an
            item has no entry; those items stay open, and the same command asks them again.
    """
    from bfcl_eval._llm_response_generation import main

    from recipes.toolrl.bfcl.handler import NAME, register

    register(
        arguments.server,
        arguments.model,
        arguments.sampling,
        seed=arguments.seed,
        multi_turn_sentence=arguments.multi_turn_sentence,
    )
    folder = root / "result" / NAME
    for fault in results.forget(folder):
        print(f"asked again: {fault}", flush=True)
    wanted = _ids(arguments.categories, arguments.limit)
    if arguments.limit is not None:
        (root / "test_case_ids_to_generate.json").write_text(json.dumps(wanted))
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
    failures = results.forget(folder)
    if failures:
        raise SystemExit(f"{len(failures)} items failed and stay open; the first: {failures[0]}")
    if refusals := results.fault_of_refusals(folder, arguments.max_refused):
        results.forget(folder, at_once=True)
        raise SystemExit(f"{refusals}\nmore than --max-refused {arguments.max_refused} allows; these items stay open")
    if absent := results.absent(folder, wanted):
        raise SystemExit(f"{len(absent)} items have no reply and stay open; the first: {absent[0]}")


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
    write_whole(root / "scores.json", json.dumps(content, indent=2) + "\n")


def _ids(categories: list[str], limit: int | None) -> dict[str, list[str]]:
    """Ids of the items of each category, or of its first ``limit`` items."""
    from bfcl_eval.utils import load_dataset_entry

    return {category: [entry["id"] for entry in load_dataset_entry(category)[:limit]] for category in categories}


def _package_overall(path: Path) -> float:
    """BFCL's overall accuracy of our one model, in per cent; it counts categories that were not run as 0."""
    import pandas

    return float(str(pandas.read_csv(path)["Overall Acc"][0]).rstrip("%"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    asking = commands.add_parser("generate")
    asking.set_defaults(do=generate)
    asking.add_argument("--server", required=True)
    asking.add_argument("--model", required=True, help="its name on the server")
    sampling.add_options(asking, temperature=0.001, max_tokens=4096, why="BFCL's own")
    asking.add_argument("--seed", type=int, default=0, help="of the sampling (0)")
    asking.add_argument("--multi-turn-sentence", action="store_true", help="see recipes.toolrl.evaluate")
    asking.add_argument("--max-refused", type=float, default=0.1, help="see recipes.toolrl.evaluate (0.1)")
    asking.add_argument("--threads", type=int, default=100, help="requests in flight (100)")
    scoring = commands.add_parser("score")
    scoring.set_defaults(do=score)
    for command in (asking, scoring):
        command.add_argument("--categories", nargs="+", required=True)
        command.add_argument("--limit", type=int, help="only the first items of each category")
    arguments = parser.parse_args()
    if arguments.do is generate:
        arguments.sampling = sampling.from_options(parser, arguments)
    if "BFCL_PROJECT_ROOT" not in os.environ:
        parser.error("BFCL_PROJECT_ROOT must name the folder for results; otherwise BFCL writes into its package")
    root = Path(os.environ["BFCL_PROJECT_ROOT"])
    root.mkdir(parents=True, exist_ok=True)
    arguments.do(arguments, root)


if __name__ == "__main__":
    main()
