"""Files that a killed process may leave cut: JSON lines that are read whole or repaired, texts that are written whole.

A line ends with a line feed and with nothing else: ``str.splitlines`` also breaks at U+2028, U+2029, U+0085 and others,
which may stand inside a JSON string. Only the standard library is imported: BFCL's environment uses this module too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file; empty lines do not count.

    Raises:
        ValueError: naming the line that is no JSON.
    """
    values = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line.decode()))
            except ValueError as fault:
                raise ValueError(f"{path}, line {number} is no JSON ({fault}): {line[:80]!r}") from fault
    return values


def keep_lines(path: Path, wanted: Callable[[Any], bool]) -> list[Any]:
    """Rewrite a JSON-lines file without the lines that are not wanted, or are no JSON because a kill cut them.

    Args:
        path (Path): the file; it stays as it is if nothing has to go and its last line is complete.
        wanted (Callable): of a line's value.

    Returns:
        list[Any]: what was left out: the values, and the text of each line that is no JSON.
    """
    content = path.read_bytes()
    kept, left_out = [], []
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
        except ValueError:
            left_out.append(line.decode(errors="replace"))
            continue
        if wanted(value):
            kept.append(line + b"\n")
        else:
            left_out.append(value)
    if left_out or (content and not content.endswith(b"\n")):  # whatever is appended next begins its own line
        _replace(path, b"".join(kept))
    return left_out


def write_whole(path: Path, text: str) -> None:
    """Write a file so that after a kill it is there as a whole, or as it was before."""
    _replace(path, text.encode())


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


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
