"""Records the settings of a folder's results, so that a later call with other settings is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saw.records.files import write_whole


def claim(folder: Path, settings: Mapping[str, Any], free: tuple[str, ...] = ()) -> None:
    """Record the settings of a folder's results in ``settings.json``.

    Args:
        folder (Path): of the results; created if needed.
        settings (Mapping): everything that the results depend on, as JSON values.
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
