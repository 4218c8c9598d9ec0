"""Free disk space, and how much a training takes."""

import shutil
from pathlib import Path

#: Bytes per parameter: in a checkpoint (4, and 8 for the optimiser), and in the merged model.
CHECKPOINT_BYTES, MERGED_BYTES = 12, 4
CHECKPOINTS_KEPT = 2


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def training_bytes(parameters: float, kept: int = CHECKPOINTS_KEPT) -> float:
    """Bytes on disk of the checkpoints that a training keeps, and of the merged model."""
    return parameters * (kept * CHECKPOINT_BYTES + MERGED_BYTES)
