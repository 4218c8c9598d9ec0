"""What the scripts that reproduce a table share: options, checks, and the stages of one training."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.common import smollm2
from recipes.common.stages import CELL, Stage, check, gpus_of_a_node, gpus_of_the_cluster, run_all, show
from saw.machine.accelerator import cluster_address
from saw.machine.disk import free_bytes, training_bytes
from saw.records.files import write_whole
from saw.runs.compose import checked_override, keys_of, parse_override

METHODS = ("grpo", "gradient_grpo", "saw_grpo", "gdpo", "gradient_gdpo", "saw_gdpo")
#: Reading of the sources (configs/reading) -> its GPUs per node.
READINGS = {"controlled": 4, "as_released": 8}
#: Parameters of the models, for the disk space of a checkpoint.
PARAMETERS = {"1.5b": 1.54e9, "3b": 3.09e9}
#: The largest seed that every random generator takes, NumPy's among them.
LARGEST_SEED = 2**32 - 1
#: Stage -> the doctor's lines that may be missing until it has run.
MADE_BY = {
    "data": ("training data", "validation data"),
    "toy_model": ("model", "tokenizer"),
    smollm2.NAME: ("model", "tokenizer"),
}
#: Setting that a command gives each of its trainings -> the option to use instead of an override.
OF_EACH_TRAINING = {
    "saw.method": "--method",
    "data.seed": "--seeds",
    "trainer.default_local_dir": "--out",
    "trainer.experiment_name": "--out: a training has the name of its folder",
}
#: As before, for a table.
TOLD_APART_BY = {
    **OF_EACH_TRAINING,
    "reading": "--reading",
    "model": "--model, where the table has it",
    "experiment": "another script",
}
#: As before, but not in a rehearsal, which has the sizes of a toy.
SIZES = {"trainer.n_gpus_per_node": "--gpus", "trainer.nnodes": "--nodes"}


def parser(description: str | None, name: str, models: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The options that every table has.

    Args:
        description (str | None): of the script.
        name (str): of the folder below ``$SAW_RUNS``.
        models (Sequence[str]): sizes of the table, if it has several.
    """
    options = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the script looks for the full --dry-run before set-up
    )
    options.set_defaults(table=name)
    sizes = "may be repeated, all if absent; " if models else ""
    options.add_argument(
        "--model",
        action="append",
        choices=(*models, smollm2.NAME),
        help=f"{sizes}{smollm2.NAME}: with --rehearse, this language model instead of the toy model",
    )
    options.add_argument("--method", action="append", choices=METHODS, help="may be repeated; all if absent")
    options.add_argument("--seeds", type=seed_list, default=[1], metavar="1,2,3", help="one training each (1)")
    options.add_argument("--reading", choices=READINGS, default="controlled", help="in configs/reading (controlled)")
    options.add_argument("--evaluations", type=int, help="evaluations per checkpoint (4; in a rehearsal 2)")
    options.add_argument("--gpus", type=int, help="per node (the reading's: 4, as released 8)")
    options.add_argument("--nodes", type=int, default=1, help="nodes of the Ray cluster at RAY_ADDRESS (1)")
    options.add_argument(
        "--hours", type=time_limit, default=72, help="time limit of a training or an evaluation, in hours (72)"
    )
    options.add_argument("--out", type=Path, help=f"folder for everything ($SAW_RUNS/{name})")
    options.add_argument("--dry-run", action="store_true", help="print every command and check what it needs")
    options.add_argument(
        "--rehearse", action="store_true", help="toy model and data, on a CPU; saw_gdpo unless --method is given"
    )
    options.add_argument(
        "overrides", nargs="*", type=checked_override, metavar="KEY=VALUE", help="Hydra overrides of the trainings"
    )
    return options


def parse(options: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the common options."""
    arguments = options.parse_args(argv)
    refuse_own(options, arguments.overrides, TOLD_APART_BY if arguments.rehearse else {**TOLD_APART_BY, **SIZES})
    models = list(dict.fromkeys(arguments.model or ()))
    arguments.smollm2 = smollm2.NAME in models
    if arguments.smollm2 and not arguments.rehearse:
        options.error(f"--model {smollm2.NAME} takes the toy model's place, so it needs --rehearse")
    arguments.model = [name for name in models if name != smollm2.NAME]
    for name in ("evaluations", "gpus", "nodes"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            options.error(f"--{name} is {getattr(arguments, name)}; expected at least 1")
    arguments.method = list(dict.fromkeys(arguments.method or (["saw_gdpo"] if arguments.rehearse else METHODS)))
    arguments.evaluations = arguments.evaluations or (2 if arguments.rehearse else 4)
    arguments.gpus = arguments.gpus or READINGS[arguments.reading]
    runs = Path(os.environ.get("SAW_RUNS", "runs"))
    default = runs / "rehearsal" / arguments.table if arguments.rehearse else runs / arguments.table
    arguments.out = (arguments.out or default).resolve()
    return arguments


def refuse_own(options: argparse.ArgumentParser, overrides: Iterable[str], instead: Mapping[str, str]) -> None:
    """End with an error if an override sets what a command sets for each training.

    Of two overrides of a key the last one counts, so a folder would hold another training than its name says.

    Args:
        options (argparse.ArgumentParser): of the command.
        overrides (Iterable[str]): valid ones.
        instead (Mapping[str, str]): setting of the command -> the option to use instead.
    """
    for override in overrides:
        found = parse_override(override)
        section, value = found.key_or_group, found.value()
        for key in keys_of(section, value):
            if key in instead:
                options.error(f"{override!r} sets {key}, which this command sets itself; use {instead[key]}")
        if found.is_delete() or value is None:
            for key in instead:
                if key.startswith(f"{section}."):
                    options.error(f"{override!r} removes {key}, which this command sets itself")


def rehearsal_model(arguments: argparse.Namespace, *options: str) -> tuple[Path, list[Stage], Sequence[str]]:
    """The model of a rehearsal, the stages that make it, and overrides for the lengths that its tokenizer needs.

    Args:
        arguments (argparse.Namespace): the common options.
        options (str): of the toy model.
    """
    if arguments.smollm2:
        folder = smollm2.default_folder()
        return folder, smollm2.stages(folder), smollm2.REHEARSAL
    folder = arguments.out / "model"
    warm = ("-m", "recipes.quickstart.toy_model", *options, "--out", str(folder), "--steps", "60")
    return folder, [Stage("toy_model", arguments.out, warm)], ()


def seed_list(text: str) -> list[int]:
    """Read ``1,2,3``.

    Raises:
        argparse.ArgumentTypeError: if it has another form, a number that is no seed, or one twice.
    """
    try:
        seeds = [] if "_" in text else [int(part) for part in text.split(",")]  # Python reads 1_0 as 10
    except ValueError:
        seeds = []
    if not seeds or not all(0 <= seed <= LARGEST_SEED for seed in seeds) or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected whole numbers from 0 to {LARGEST_SEED}, each once, separated by commas, as in 1,2,3"
        )
    return seeds


def time_limit(text: str) -> float:
    """Read a number of hours.

    Raises:
        argparse.ArgumentTypeError: if it is not a number, or too short for a training to start.
    """
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not hours > 0 or "_" in text:  # Python reads 1_0 as 10
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of hours above 0")
    return hours


def training(
    arguments: argparse.Namespace,
    folder: Path,
    experiment: Sequence[str],
    seed: int,
    overrides: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> list[Stage]:
    """The stages of training and merging.

    Args:
        arguments (argparse.Namespace): the common options.
        folder (Path): of the training; the data is beside it.
        experiment (Sequence[str]): the overrides that select it, such as ``experiment=tldr`` and ``saw.method=grpo``.
        seed (int): of the training.
        overrides (Sequence[str]): further ones.
        environment (Mapping[str, str] | None): further variables.
    """
    data = folder.parent / "data"
    size = (
        () if arguments.rehearse else (f"trainer.n_gpus_per_node={arguments.gpus}", f"trainer.nnodes={arguments.nodes}")
    )
    train = (
        *("-m", "saw.runs.train", *experiment, f"reading={arguments.reading}", f"data.seed={seed}"),
        *(f"data.train_files={data / 'train.parquet'}", f"data.val_files={data / 'test.parquet'}"),
        *(f"trainer.default_local_dir={folder}", f"trainer.experiment_name={folder.name}"),
        *size,
        *overrides,
    )
    merge = ("-m", "recipes.common.merge", "--checkpoints", str(folder), "--out", str(folder / "hf"))
    variables = {"SAW_PLATFORM": "cpu" if arguments.rehearse else "gpu"}
    hours = 1.0 if arguments.rehearse else arguments.hours
    return [
        Stage("train", folder, train, hours, {**variables, **(environment or {})}, trains=True),
        Stage("merge", folder, merge, 1.0, variables),
    ]


def check_machine(arguments: argparse.Namespace, folders: Iterable[tuple[str, str]]) -> list[str]:
    """Print the available GPUs and disk space, and return what is missing.

    Args:
        arguments (argparse.Namespace): the common options.
        folders (Iterable[tuple[str, str]]): size of the model and name of the folder of each training.
    """
    missing = [] if arguments.rehearse else _check_gpus(arguments)
    left = [size for size, name in folders if not (arguments.out / name / "merge.done.json").exists()]
    need = 1e9 if arguments.rehearse else sum(training_bytes(PARAMETERS[size]) for size in left)
    space = free_bytes(arguments.out)
    print(f"disk: {need / 1e9:.0f} GB needed at most, {space / 1e9:.0f} GB free at {arguments.out}")
    if space < need:
        missing.append(
            f"disk: {need / 1e9:.0f} GB needed at {arguments.out}, {space / 1e9:.0f} GB free; name a folder on a "
            "larger disk with --out, or fewer trainings with --method and --seeds"
        )
    return missing


def _check_gpus(arguments: argparse.Namespace) -> list[str]:
    if os.environ.get("SAW_PLATFORM", "").strip().lower() == "cpu":
        return ["SAW_PLATFORM is cpu, but a table trains on GPUs: add --rehearse, or unset SAW_PLATFORM"]
    wanted = arguments.gpus * arguments.nodes
    if (address := cluster_address()) is not None:
        try:
            where, there = f"the Ray cluster {address}", gpus_of_the_cluster()
        except ValueError as fault:
            return [str(fault)]
    elif arguments.nodes > 1:
        return [f"--nodes {arguments.nodes}: RAY_ADDRESS must name a running Ray cluster (recipes/toolrl)"]
    else:
        where, there = "this machine", gpus_of_a_node()
    print(f"GPUs: {wanted} needed, {there} on {where}")
    return [f"GPUs: {arguments.nodes} nodes x {arguments.gpus} needed, {there} on {where}"] if there < wanted else []


def _write_cell(arguments: argparse.Namespace, cell: Any, seed: int) -> None:
    """Record in a training's folder which row of the table it belongs to."""
    folder = arguments.out / cell.folder(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rehearsal = {"size_override": "toy" if arguments.rehearse else None, "overrides": list(arguments.overrides)}
    write_whole(folder / CELL, json.dumps({**cell._asdict(), "seed": seed, **rehearsal}, indent=2) + "\n")


def stop_if_missing(arguments: argparse.Namespace, missing: Sequence[str]) -> None:
    """Print what is missing, and exit if anything is, except in a dry run."""
    for fault in missing:
        print(f"missing: {fault}", file=sys.stderr)
    if missing and not arguments.dry_run:
        raise SystemExit(2)


def diagnose(arguments: argparse.Namespace, plan: tuple[Sequence[Stage], Mapping[str, Sequence[Stage]]]) -> bool:
    """Show the doctor's table for the first training of a plan.

    Runs in a separate process, so that its imports and variables do not affect this one.

    Returns:
        bool: whether the training can start.
    """
    shared, chains = plan
    train = next(stage for stages in chains.values() for stage in stages if stage.trains)
    made = [thing for stage in shared if not stage.is_done() for thing in MADE_BY.get(stage.name, ())]
    made += ["judge's answer"] if arguments.rehearse else []  # a rehearsal starts its own judge
    later = [f"--later={thing}" for thing in made]
    print(f"doctor, for {train.folder.name}:", flush=True)
    command = [sys.executable, "-m", "saw.doctor", *later, *train.command[2:]]
    return subprocess.run(command, env={**os.environ, **train.environment}, check=False).returncode == 0


def run_or_show(
    arguments: argparse.Namespace,
    missing: Sequence[str],
    plan: tuple[Sequence[Stage], Mapping[str, Sequence[Stage]]],
    cells: Iterable[tuple[Any, int]],
    write_table: Callable[[Path, Path], None],
) -> None:
    """Show the plan, or run it and print the table.

    Args:
        arguments (argparse.Namespace): the common options.
        missing (Sequence[str]): what is missing, printed at the end of a dry run.
        plan (tuple): the shared stages, and the stages of each training by the name of its folder.
        cells (Iterable[tuple[Any, int]]): row of the table and seed of each training.
        write_table (Callable): writes the table of a folder of trainings into a folder.
    """
    if arguments.dry_run:
        too_much = [] if arguments.rehearse else _check_memory(arguments, plan[1])
        stop_if_missing(arguments, too_much)
        missing = [*missing, *too_much]
        can_start = diagnose(arguments, plan)
        show(*plan)
        if can_start:  # otherwise the doctor has named it; but it looks at the first training only
            check(*plan)
        raise SystemExit(2 if missing or not can_start else 0)
    check(*plan)
    for cell, seed in cells:
        _write_cell(arguments, cell, seed)
    run_all(*plan, lambda: write_table(arguments.out, arguments.out))


def _check_memory(arguments: argparse.Namespace, chains: Mapping[str, Sequence[Stage]]) -> list[str]:
    from saw import memory  # imports torch, which only a dry run needs

    trainings = [stage.command[2:] for stages in chains.values() for stage in stages if stage.trains]
    lines, missing = memory.check(trainings, arguments.gpus * arguments.nodes)
    print("\n".join(lines))
    return missing


def run_main(main: Callable[[], None]) -> None:
    """Call a script's main; on an interrupt, print how to resume."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; all processes have been stopped; rerun the same command to resume") from None
