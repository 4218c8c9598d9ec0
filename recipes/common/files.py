"""What a folder's results are made with, written down, so that no later call mixes in others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saw.records.files import write_whole


def claim(folder: Path, settings: Mapping[str, Any], free: tuple[str, ...] = ()) -> None:
    """Write down in ``settings.json`` what a folder's results are made with.

    Args:
        folder (Path): of the results; made if it is absent.
        settings (Mapping): everything that the results depend on, as JSON has it.
        free (tuple[str, ...]): settings that may differ from those of an earlier call.

    Raises:
        SystemExit: if the folder holds results that were made with other settings.
    """
    path = folder / "settings.json"
    if path.exists():
        stands = json.loads(path.read_text())
        for key, value in settings.items():
            if key not in free and stands.get(key) != value:
                there = f"{folder} holds an evaluation with {key} {stands.get(key)}, not {value}"
                raise SystemExit(f"{there}; remove it, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=2) + "\n")
