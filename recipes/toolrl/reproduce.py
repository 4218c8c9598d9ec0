"""Table 1 from the raw data to the table.

    bash scripts/reproduce_table1.sh --source rlla_rl.json [--model 1.5b] [--method saw_gdpo] [--seeds 1,2,3]
    bash scripts/reproduce_table1.sh --source rlla_rl.json --dry-run     every command, and what is missing
    bash scripts/reproduce_table1.sh --rehearse                          the same on a CPU with a toy model

Data, then for each model, method and seed training, merging to a Hugging Face folder and four evaluations with BFCL v4,
then the table. What is finished is skipped, what is not goes on where it stopped: the same command again is all that a
killed one needs. KEY=VALUE are Hydra overrides of the trainings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from recipes.stages import Stage, free_bytes, gpus_of_a_node, gpus_of_the_cluster, run_all, show
from recipes.toolrl.evaluate import bfcl_python
from recipes.toolrl.table import KLS, METHODS, SIZES, Cell
from recipes.toolrl.table import main as make_table

#: Parameters of the models, for the disk space of a checkpoint: 4 bytes each, and 8 of the optimiser.
PARAMETERS = {"1.5b": 1.54e9, "3b": 3.09e9}
CHECKPOINT_BYTES, MERGED_BYTES = 12, 4
CHECKPOINTS_KEPT = 2


def plan(arguments: argparse.Namespace) -> tuple[list[Stage], dict[str, list[Stage]]]:
    """The shared stages, and the stages of each training.

    Args:
        arguments (argparse.Namespace): the command line.

    Returns:
        tuple[list[Stage], dict[str, list[Stage]]]: the shared stages, and the others by the name of their folder.
    """
    out: Path = arguments.out
    source, overrides = arguments.source, list(arguments.overrides)
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
    for cell in cells(arguments):
        for seed in arguments.seeds:
            name = cell.folder(seed)
            chains[name] = chain(cell, seed, out / name, overrides, arguments)
    return shared, chains


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """The rows of the table that are asked for."""
    return [Cell(size, method, arguments.kl) for size in arguments.model for method in arguments.method]


def chain(cell: Cell, seed: int, folder: Path, overrides: list[str], arguments: argparse.Namespace) -> list[Stage]:
    """Training, merging and evaluation."""
    data = folder.parent / "data"
    train = (
        *("-m", "saw.train", f"experiment=toolrl/{cell.size}_{cell.method}", f"kl={cell.kl}", f"data.seed={seed}"),
        *(f"data.train_files={data / 'train.parquet'}", f"data.val_files={data / 'test.parquet'}"),
        *(f"trainer.default_local_dir={folder}", f"trainer.experiment_name={folder.name}"),
        *(() if arguments.rehearse else (f"trainer.n_gpus_per_node={arguments.gpus}",)),
        *(() if arguments.rehearse else (f"trainer.nnodes={arguments.nodes}",)),
        *overrides,
    )
    evaluate = (
        *("-m", "recipes.toolrl.evaluate", "--model", str(folder / "hf"), "--out", str(folder / "bfcl")),
        *("--runs", str(arguments.evaluations), "--gpus", str(0 if arguments.rehearse else arguments.gpus)),
        *(("--limit", "1", "--max-tokens", "64") if arguments.rehearse else ()),
    )
    merge = ("-m", "recipes.merge", "--checkpoints", str(folder), "--out", str(folder / "hf"))
    platform = {"SAW_PLATFORM": "cpu" if arguments.rehearse else "gpu"}
    hours = 1.0 if arguments.rehearse else arguments.hours
    return [
        Stage("train", folder, train, hours, platform, trains=True),
        Stage("merge", folder, merge, 1.0, platform),
        Stage("evaluate", folder, evaluate, hours),
    ]


def check(arguments: argparse.Namespace) -> list[str]:
    """What is missing for the plan."""
    missing = []
    if not arguments.rehearse:
        if arguments.source is None:
            missing.append("--source: the path or URL of ToolRL's raw file (rlla_rl.json) or of its parquet is needed")
        elif not arguments.source.startswith(("http://", "https://")) and not Path(arguments.source).is_file():
            missing.append(f"--source {arguments.source}: there is no such file")
        missing += _check_gpus(arguments)
    space, need = free_bytes(arguments.out), _space(arguments)
    print(f"disk: {need / 1e9:.0f} GB needed at most, {space / 1e9:.0f} GB free at {arguments.out}")
    if space < need:
        missing.append(f"disk: {need / 1e9:.0f} GB needed at {arguments.out}, {space / 1e9:.0f} GB free")
    try:
        print(f"BFCL: {bfcl_python().parents[1]}")
    except SystemExit as fault:
        missing.append(str(fault))
    return missing


def _check_gpus(arguments: argparse.Namespace) -> list[str]:
    wanted = arguments.gpus * arguments.nodes
    if "RAY_ADDRESS" in os.environ:
        where, there = f"the Ray cluster {os.environ['RAY_ADDRESS']}", gpus_of_the_cluster()
    elif arguments.nodes > 1:
        return [f"--nodes {arguments.nodes}: RAY_ADDRESS must name a Ray cluster that runs already (recipes/toolrl)"]
    else:
        where, there = "this machine", gpus_of_a_node()
    print(f"GPUs: {wanted} wanted, {there} on {where}")
    return [f"GPUs: {arguments.nodes} nodes x {arguments.gpus} wanted, {there} on {where}"] if there < wanted else []


def _space(arguments: argparse.Namespace) -> float:
    """Bytes that the checkpoints and merged models of the plan take, of those that are not done."""
    if arguments.rehearse:
        return 1e9
    open_cells = [
        cell
        for cell in cells(arguments)
        for seed in arguments.seeds
        if not (arguments.out / cell.folder(seed) / "merge.done.json").exists()
    ]
    return sum(PARAMETERS[c.size] * (CHECKPOINTS_KEPT * CHECKPOINT_BYTES + MERGED_BYTES) for c in open_cells)


def write_cells(arguments: argparse.Namespace) -> None:
    """Say in each folder which row of the table it belongs to."""
    for cell in cells(arguments):
        for seed in arguments.seeds:
            folder = arguments.out / cell.folder(seed)
            folder.mkdir(parents=True, exist_ok=True)
            content = {
                **{"size": cell.size, "method": cell.method, "kl": cell.kl, "seed": seed},
                "size_override": "toy" if arguments.rehearse else None,
                "overrides": list(arguments.overrides),
            }
            (folder / "cell.json").write_text(json.dumps(content, indent=2) + "\n")


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between, as in 1,2,3") from None
    return list(dict.fromkeys(seeds))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="path or URL of ToolRL's raw file (rlla_rl.json) or of its parquet")
    parser.add_argument("--skip-bad", action="store_true", help="leave rows out that the reward could not score")
    parser.add_argument("--model", action="append", choices=SIZES, help="may be repeated; both if absent")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated; all if absent")
    parser.add_argument("--seeds", type=_seeds, default=[1], metavar="1,2,3", help="one training each (1)")
    parser.add_argument("--kl", choices=KLS, default="controlled", help="treatment of the KL term (controlled)")
    parser.add_argument("--evaluations", type=int, help="of each checkpoint (4; in a rehearsal 2)")
    parser.add_argument("--gpus", type=int, default=4, help="of a node (4)")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the Ray cluster at RAY_ADDRESS (1)")
    parser.add_argument(
        "--hours", type=float, default=72, help="after which a training or an evaluation is stopped (72)"
    )
    parser.add_argument("--out", type=Path, help="folder for everything ($SAW_RUNS/toolrl)")
    parser.add_argument("--dry-run", action="store_true", help="print every command and check what it needs")
    parser.add_argument("--rehearse", action="store_true", help="toy model and data, on a CPU; one row unless named")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides of the trainings")
    arguments = parser.parse_args(argv)
    for override in arguments.overrides:
        if "=" not in override:
            parser.error(f"{override!r} is no Hydra override; expected KEY=VALUE")
    for name in ("evaluations", "gpus", "nodes"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; expected at least 1")
    if arguments.rehearse:
        if arguments.source or arguments.skip_bad:
            parser.error("--rehearse makes its own rows; it takes neither --source nor --skip-bad")
        arguments.model = arguments.model or ["1.5b"]
        arguments.method = arguments.method or ["saw_gdpo"]
    arguments.model = list(dict.fromkeys(arguments.model or SIZES))
    arguments.method = list(dict.fromkeys(arguments.method or METHODS))
    arguments.evaluations = arguments.evaluations or (2 if arguments.rehearse else 4)
    runs = Path(os.environ.get("SAW_RUNS", "runs"))
    arguments.out = (
        arguments.out or (runs / "rehearsal" / "toolrl" if arguments.rehearse else runs / "toolrl")
    ).resolve()
    return arguments


def main() -> None:
    """Command line."""
    arguments = parse()
    missing = check(arguments)
    for fault in missing:
        print(f"missing: {fault}", file=sys.stderr)
    if missing and not arguments.dry_run:
        raise SystemExit(2)
    if arguments.source is None and not arguments.rehearse:
        arguments.source = "SOURCE"
    shared, chains = plan(arguments)
    if arguments.dry_run:
        show(shared, chains)
        raise SystemExit(2 if missing else 0)
    write_cells(arguments)

    def table() -> None:
        sys.argv = ["table", "--runs", str(arguments.out)]
        make_table()

    run_all(shared, chains, table)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(
            "\ninterrupted; everything that was started has been stopped; the same command goes on"
        ) from None
