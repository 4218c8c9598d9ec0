"""Merge the last checkpoint of a training into a Hugging Face folder, with verl's own merger.

python -m recipes.common.merge --checkpoints runs/toolrl/TRAINING --out runs/toolrl/TRAINING/hf
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

#: Written by verl once a checkpoint is complete; holds its step.
LATEST = "latest_checkpointed_iteration.txt"
#: So many absent files of a checkpoint are named.
NAMED = 16


def last_checkpoint(folder: Path) -> Path:
    """The actor's shards of the last complete checkpoint.

    Raises:
        SystemExit: if there is none, or if it can't be known which.
    """
    if not (folder / LATEST).exists():
        raise SystemExit(f"{folder} holds no complete checkpoint ({LATEST} is absent); has the training been run?")
    try:
        step = (folder / LATEST).read_bytes().strip()
    except OSError as error:
        raise SystemExit(f"{folder / LATEST} can't be read: {error}") from None
    if not step.isdigit():
        raise SystemExit(
            f"{folder / LATEST} holds {step[:20]!r}; expected a step, for example 10: write that of the last complete "
            "global_step_ folder into it"
        )
    actor = folder / f"global_step_{step.decode()}" / "actor"
    if not actor.is_dir():
        raise SystemExit(f"{folder / LATEST} names a step whose folder {actor} is absent")
    return actor


def check(actor: Path, out: Path) -> None:
    """Check what verl's merger would fail on with a traceback, and that nothing is replaced.

    Raises:
        SystemExit: naming the file.
    """
    try:
        ranks = json.loads((actor / "fsdp_config.json").read_bytes())["world_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{actor} can't be merged: its fsdp_config.json has no world_size ({error})") from None
    if type(ranks) is not int or ranks < 1:
        raise SystemExit(
            f"{actor} can't be merged: world_size in its fsdp_config.json is {ranks!r}; expected the number of ranks, "
            "at least 1: copy the checkpoint again"
        )
    shards = (f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks))
    names = chain(["huggingface/config.json"], shards)
    if absent := list(islice((name for name in names if not (actor / name).is_file()), NAMED)):
        more = " (or more)" if len(absent) == NAMED else ""
        raise SystemExit(
            f"{actor} can't be merged: {', '.join(absent)}{more} absent; copy the checkpoint again, from every node"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemExit(f"--out {out} exists and is not an empty folder; remove it, or name another one")


def merge(checkpoints: Path, out: Path) -> None:
    """Merge into a temporary folder, renamed once it is complete.

    Raises:
        SystemExit: if there is no checkpoint, or it can't be merged.
    """
    out = out.resolve()  # "." has no name, and a rename would replace a link itself
    actor = last_checkpoint(checkpoints)
    check(actor, out)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(actor), "--target_dir", str(unfinished)]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{actor} can't be merged: verl's merger ended with exit code {code}; its error is above")
    unfinished.rename(out)  # an empty folder may be there


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True, help="trainer.default_local_dir of the training")
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder")
    arguments = parser.parse_args()
    merge(arguments.checkpoints, arguments.out)


if __name__ == "__main__":
    main()
