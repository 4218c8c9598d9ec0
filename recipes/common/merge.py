"""Merge the last checkpoint of a training into a Hugging Face folder, with verl's own merger.

python -m recipes.common.merge --checkpoints runs/toolrl/TRAINING --out runs/toolrl/TRAINING/hf
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

#: Written by verl once a checkpoint is complete; holds its step.
LATEST = "latest_checkpointed_iteration.txt"


def last_checkpoint(folder: Path) -> Path:
    """The actor's shards of the last complete checkpoint.

    Raises:
        SystemExit: if there is none.
    """
    if not (folder / LATEST).exists():
        raise SystemExit(f"{folder} holds no complete checkpoint ({LATEST} is absent); has the training been run?")
    actor = folder / f"global_step_{(folder / LATEST).read_text().strip()}" / "actor"
    if not actor.is_dir():
        raise SystemExit(f"{folder / LATEST} names a step whose folder {actor} is absent")
    return actor


def check(actor: Path, out: Path) -> None:
    """Check what verl's merger would fail on with a traceback, and that nothing but an earlier merge is replaced.

    Raises:
        SystemExit: naming the file.
    """
    try:
        ranks = int(json.loads((actor / "fsdp_config.json").read_bytes())["world_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{actor} can't be merged: its fsdp_config.json has no world_size ({error})") from None
    shards = [f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    if absent := [name for name in (*shards, "huggingface/config.json") if not (actor / name).is_file()]:
        raise SystemExit(
            f"{actor} can't be merged: {', '.join(absent)} absent; copy the checkpoint again, from every node"
        )
    if out.exists() and not (out / "config.json").is_file():
        raise SystemExit(f"--out {out} exists and is no Hugging Face folder, and would be replaced; name another one")


def merge(checkpoints: Path, out: Path) -> None:
    """Merge into a temporary folder, renamed once it is complete.

    Raises:
        SystemExit: if there is no checkpoint, or it can't be merged.
    """
    actor = last_checkpoint(checkpoints)
    check(actor, out)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(actor), "--target_dir", str(unfinished)]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{actor} can't be merged: verl's merger ended with exit code {code}; its error is above")
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True, help="trainer.default_local_dir of the training")
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder")
    arguments = parser.parse_args()
    merge(arguments.checkpoints, arguments.out)


if __name__ == "__main__":
    main()
