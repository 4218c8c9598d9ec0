"""Files that a killed process may leave cut: JSON lines that are read or repaired, texts that are written whole.

A line ends with a line feed and with nothing else: ``str.splitlines`` also breaks at U+2028, U+2029, U+0085 and others,
which may stand inside a JSON string. Only the standard library is imported: BFCL's environment uses this module too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line of a JSON-lines file; a broken line's value is the :class:`ValueError`.

    Empty lines do not count. A last line without a line feed that is no JSON was cut off when its writer was killed,
    and is left out.
    """
    for number, _, value, is_complete in _lines(path):
        if is_complete or not isinstance(value, ValueError):
            yield number, value


def read_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file that must be whole; empty lines do not count.

    Raises:
        ValueError: naming the line that is no JSON, also a last one that was cut off.
    """
    values = []
    for number, line, value, _ in _lines(path):
        if isinstance(value, ValueError):
            raise ValueError(f"{path}, line {number} is no JSON ({value}): {line[:80]!r}") from value
        values.append(value)
    return values


def keep_lines(path: Path, wanted: Callable[[Any], bool]) -> list[Any]:
    """Rewrite a JSON-lines file without the lines that are not wanted, or are no JSON because a kill cut them.

    Args:
        path (Path): the file; it stays as it is if nothing has to go and its last line is complete.
        wanted (Callable): of a line's value.

    Returns:
        list[Any]: what was left out: the values, and the text of each line that is no JSON.
    """
    kept, left_out, is_whole = [], [], True
    for _, line, value, is_complete in _lines(path):
        is_whole = is_complete
        if isinstance(value, ValueError):
            left_out.append(line.decode(errors="replace"))
        elif wanted(value):
            kept.append(line + b"\n")
        else:
            left_out.append(value)
    if left_out or not is_whole:  # whatever is appended next begins its own line
        _replace(path, b"".join(kept))
    return left_out


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, and whoever comes after a kill, finds all of it, or what was there before."""
    _replace(path, text.encode())


def _lines(path: Path) -> Iterator[tuple[int, bytes, Any, bool]]:
    """Number, text, value or :class:`ValueError`, and whether a line feed ends it, of each line that is not empty."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value: Any
        try:
            value = json.loads(line)
        except ValueError as fault:
            value = fault
        except RecursionError as fault:
            value = ValueError(str(fault))
        yield number, line, value, number < len(lines)


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")  # another process may write the same file
    unfinished.write_bytes(content)
    unfinished.replace(path)
