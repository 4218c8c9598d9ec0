"""Table 1 from the raw data to the table.

    bash scripts/reproduce_table1.sh --source rlla_rl.json [--model 1.5b] [--method saw_gdpo] [--seeds 1,2,3]
    bash scripts/reproduce_table1.sh --source rlla_rl.json --dry-run     every command, and what is missing
    bash scripts/reproduce_table1.sh --rehearse                          the same on a CPU with a toy model

Data, then for each model, method and seed training, merging to a Hugging Face folder and four evaluations with BFCL v4,
then the table. Finished stages are skipped and others resume, so rerun the same command after a kill. KEY=VALUE are
Hydra overrides of the trainings.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.common import reproduce
from recipes.common.stages import Stage
from recipes.toolrl.evaluate import bfcl_python
from recipes.toolrl.table import SIZES, TABLE, Cell


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = reproduce.parser(__doc__, "toolrl")
    parser.add_argument("--source", help="path or URL of ToolRL's raw file (rlla_rl.json) or of its parquet")
    parser.add_argument("--skip-bad", action="store_true", help="leave out rows that the reward could not score")
    parser.add_argument("--check-arguments", action="store_true", help=argparse.SUPPRESS)  # for the shell scripts
    parser.add_argument("--model", action="append", choices=SIZES, help="may be repeated; both if absent")
    arguments = reproduce.parse(parser, argv)
    if arguments.rehearse and (arguments.source or arguments.skip_bad):
        parser.error("--rehearse makes its own rows; it takes neither --source nor --skip-bad")
    arguments.model = list(dict.fromkeys(arguments.model or (["1.5b"] if arguments.rehearse else SIZES)))
    return arguments


def cells(arguments: argparse.Namespace) -> Iterator[tuple[Cell, int]]:
    """The selected rows of the table, with each seed."""
    for size in arguments.model:
        for method in arguments.method:
            for seed in arguments.seeds:
                yield Cell(size, method, arguments.reading), seed


def plan(arguments: argparse.Namespace) -> tuple[list[Stage], dict[str, list[Stage]]]:
    """The shared stages, and the stages of each training by the name of its folder."""
    out: Path = arguments.out
    source, overrides = arguments.source or "SOURCE", list(arguments.overrides)
    shared = []
    if arguments.rehearse:
        source, model = str(out / "raw.json"), out / "model"
        raw = ("-m", "data_prep.toy_toolrl", "--raw", source, "--train-rows", "100")
        warm = ("-m", "recipes.quickstart.toy_model", "--out", str(model), "--steps", "60")
        shared = [Stage("toy_rows", out, raw), Stage("toy_model", out, warm)]
        overrides = ["size=toy", f"actor_rollout_ref.model.path={model}", *overrides]
    skip = ("--skip-bad",) if arguments.skip_bad else ()
    data = out / "data"
    shared.append(Stage("data", data, ("-m", "data_prep.toolrl", "--source", source, "--out", str(data), *skip)))
    chains = {}
    for cell, seed in cells(arguments):
        folder = out / cell.folder(seed)
        experiment = ("experiment=toolrl", f"model=qwen2.5-{cell.size}", f"saw.method={cell.method}")
        stages = reproduce.training(arguments, folder, experiment, seed, overrides)
        chains[folder.name] = [*stages, evaluation(arguments, folder)]
    return shared, chains


def evaluation(arguments: argparse.Namespace, folder: Path) -> Stage:
    """The stage of the repeated BFCL evaluation."""
    command = (
        *("-m", "recipes.toolrl.evaluate", "--model", str(folder / "hf"), "--out", str(folder / "bfcl")),
        *("--runs", str(arguments.evaluations), "--gpus", str(0 if arguments.rehearse else arguments.gpus)),
        *(("--limit", "1", "--max-tokens", "64", "--max-refused", "1") if arguments.rehearse else ()),
    )
    return Stage("evaluate", folder, command, 1.0 if arguments.rehearse else arguments.hours)


def check_source(arguments: argparse.Namespace) -> list[str]:
    """What is wrong with ``--source``."""
    if arguments.rehearse:
        return []
    if arguments.source is None:
        return ["--source: the path or URL of ToolRL's raw file (rlla_rl.json) or of its parquet is needed"]
    if not arguments.source.startswith(("http://", "https://")) and not Path(arguments.source).is_file():
        return [f"--source {arguments.source}: there is no such file"]
    return []


def check(arguments: argparse.Namespace) -> list[str]:
    """What is missing for the plan."""
    missing = check_source(arguments)
    missing += reproduce.check_machine(arguments, [(cell.size, cell.folder(seed)) for cell, seed in cells(arguments)])
    try:
        print(f"BFCL: {bfcl_python().parents[1]}")
    except SystemExit as fault:
        if arguments.dry_run:
            print(f"BFCL: not yet; scripts/reproduce_table1.sh makes it, except in a dry run ({fault})")
        else:
            missing.append(str(fault))
    return missing


def main() -> None:
    """Command line."""
    arguments = parse()
    if arguments.check_arguments:
        reproduce.stop_if_missing(arguments, [] if arguments.dry_run else check_source(arguments))
        return
    missing = check(arguments)
    reproduce.stop_if_missing(arguments, missing)
    reproduce.run_or_show(arguments, missing, plan(arguments), cells(arguments), TABLE.write)


if __name__ == "__main__":
    reproduce.run_main(main)
