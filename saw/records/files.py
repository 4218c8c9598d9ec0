"""Files that survive a killed process: JSON lines whose cut-off end is skipped or repaired, and atomic writes.

Lines end with a line feed only: ``str.splitlines`` also breaks at U+2028, U+2029, U+0085 and others, which may occur
inside a JSON string. Only the standard library is imported, because BFCL's environment uses this module too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line of a JSON-lines file; the value of a broken line is a :class:`ValueError`.

    Empty lines are skipped. So is a last line that is not valid JSON and has no line feed: it was cut off when its
    writer was killed.
    """
    for number, _, value, is_complete in _lines(path):
        if is_complete or not isinstance(value, ValueError):
            yield number, value


def read_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file that must be complete; empty lines are skipped.

    Raises:
        ValueError: naming the first line that is not valid JSON, even a last one that was cut off.
    """
    values = []
    for number, line, value, _ in _lines(path):
        if isinstance(value, ValueError):
            raise ValueError(f"{path}, line {number} is not valid JSON ({value}): {line[:80]!r}") from value
        values.append(value)
    return values


def keep_lines(path: Path, wanted: Callable[[Any], bool]) -> list[Any]:
    """Rewrite a JSON-lines file without unwanted lines and lines that are not valid JSON (cut off by a kill).

    Args:
        path (Path): the file; not rewritten if no line is removed and the last one is complete.
        wanted (Callable): whether to keep a line, given its value.

    Returns:
        list[Any]: the removed values, and the text of each removed line that is not valid JSON.
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
    if left_out or not is_whole:  # so that the next append starts a new line
        _replace(path, b"".join(kept))
    return left_out


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: a reader, even after a kill, finds either the whole new content or the old one."""
    _replace(path, text.encode())


def _lines(path: Path) -> Iterator[tuple[int, bytes, Any, bool]]:
    """For each non-empty line: number, text, value or :class:`ValueError`, and whether it ends with a line feed."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        yield number, line, value_of(line), number < len(lines)


def value_of(line: bytes) -> Any:
    """The value of a line of JSON; a :class:`ValueError` if it is not valid."""
    try:
        return json.loads(line)
    except ValueError as fault:
        return fault
    except RecursionError as fault:
        return ValueError(str(fault))


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")  # another process may write the same file
    unfinished.write_bytes(content)
    unfinished.replace(path)
