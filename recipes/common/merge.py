"""Merge the last checkpoint of a training into a Hugging Face folder, with verl's own merger.

python -m recipes.common.merge --checkpoints runs/toolrl/TRAINING --out runs/toolrl/TRAINING/hf
"""

from __future__ import annotations

import argparse
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


def merge(checkpoints: Path, out: Path) -> None:
    """Merge into a temporary folder, renamed once it is complete."""
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(last_checkpoint(checkpoints)), "--target_dir", str(unfinished)]
    subprocess.run(command, check=True)
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
