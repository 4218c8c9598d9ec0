"""Free disk space, how much a training takes, and whether a folder can be written to."""

import os
import shutil
from pathlib import Path

#: Bytes per parameter: in a checkpoint (4, and 8 for the optimiser), and in the merged model.
CHECKPOINT_BYTES, MERGED_BYTES = 12, 4
CHECKPOINTS_KEPT = 2


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder is, or will be, on."""
    return shutil.disk_usage(_existing(folder)).free


def total_bytes(folder: Path) -> int:
    """Size of the disk that a folder is, or will be, on."""
    return shutil.disk_usage(_existing(folder)).total


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def held_bytes(folder: Path) -> int:
    """Size of the checkpoints in a training's folder."""
    return sum(file.lstat().st_size for file in folder.glob("global_step_*/**/*") if file.is_file())


def unwritable(folder: Path) -> str | None:
    """Why a folder can't be made, or written to; None if it can."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero byte
        return f"it can't be looked up ({error})"
    if not there.is_dir():
        return f"{there} is not a folder"
    if os.access(there, os.W_OK | os.X_OK):
        return None
    is_read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    return f"{there} is {'on a disk that is mounted read-only' if is_read_only else 'not writable'}"


def training_bytes(parameters: float, kept: int = CHECKPOINTS_KEPT) -> float:
    """Bytes on disk of the checkpoints that a training keeps, and of the merged model."""
    return parameters * (kept * CHECKPOINT_BYTES + MERGED_BYTES)
