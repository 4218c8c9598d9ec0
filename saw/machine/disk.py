"""Space on a disk, and what a training takes of it."""

import shutil
from pathlib import Path

#: Bytes a parameter: in a checkpoint 4, and 8 of the optimiser; in the merged model.
CHECKPOINT_BYTES, MERGED_BYTES = 12, 4
CHECKPOINTS_KEPT = 2


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder is on, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def training_bytes(parameters: float, kept: int = CHECKPOINTS_KEPT) -> float:
    """Bytes on the disk of the checkpoints that a training keeps, and of the merged model."""
    return parameters * (kept * CHECKPOINT_BYTES + MERGED_BYTES)
