"""The file that verl's ``file`` logger writes, across resumed runs.

One JSON object per line, ``{"step": ..., "data": {...}}``. verl empties the file whenever a training starts, so a
resumed one would lose the earlier steps. The existing file is therefore renamed first, to ``metrics.1.jsonl`` and so
on, and all parts are read as one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saw.records.files import json_lines

#: The variable that tells verl's logger which file to write.
LOCATION = "VERL_FILE_LOGGER_PATH"


def begin(path: Path, resume: bool) -> None:
    """Prepare for a training: keep the old metrics under a numbered name if it resumes, otherwise delete them."""
    if resume:
        put_aside(path)
    else:
        for part in [*parts(path), path]:
            part.unlink(missing_ok=True)


def put_aside(path: Path) -> Path | None:
    """Rename a file, if it exists and is not empty, to ``name.N.suffix`` with N one above the largest so far.

    Returns:
        Path | None: its new path; None if there was nothing to rename.
    """
    if not path.is_file() or not path.stat().st_size:
        return None
    aside = path.with_name(f"{path.stem}.{max(_numbered(path), default=0) + 1}{path.suffix}")
    path.rename(aside)
    return aside


def put_back(aside: Path | None, path: Path) -> None:
    """Undo :func:`put_aside`, unless the old name has been written to since."""
    if aside is not None and aside.is_file() and not (path.exists() and path.stat().st_size):
        aside.replace(path)


def parts(path: Path) -> list[Path]:
    """The parts that were put aside, in order; numbers may be missing."""
    numbered = _numbered(path)
    return [numbered[number] for number in sorted(numbered) if numbered[number].is_file()]


def exists(path: Path) -> bool:
    """Whether the file or a part of it exists."""
    return path.is_file() or bool(parts(path))


def read(path: Path) -> dict[int, dict[str, Any]]:
    """The metrics of each step, in order.

    A resumed training may start before the step where the previous one stopped. Later steps are then repeated, and only
    the repeated values are kept. The metrics of its first step, where it may only validate, are merged with the old.

    Raises:
        ValueError: if a line is broken; the message names the file and the line.
    """
    steps: dict[int, dict[str, Any]] = {}
    for part in [*parts(path), path]:
        records = _records(part)
        if records:
            first = records[0][0]
            steps = {step: data for step, data in steps.items() if step <= first}
        for step, data in records:
            steps[step] = {**steps.get(step, {}), **data}
    return dict(sorted(steps.items()))


def _numbered(path: Path) -> dict[int, Path]:
    if not path.parent.is_dir():
        return {}
    name = re.compile(re.escape(path.stem) + r"\.([1-9][0-9]*)" + re.escape(path.suffix))
    found = ((name.fullmatch(beside.name), beside) for beside in path.parent.iterdir())
    return {int(match[1]): beside for match, beside in found if match}


def _records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        return []
    return [checked(record, path, number) for number, record in json_lines(path)]


def checked(record: Any, path: Path, number: int) -> tuple[int, dict[str, Any]]:
    """The step and the metrics of a line's value.

    Args:
        record: from :func:`saw.records.files.json_lines`; a :class:`ValueError` if the line is not valid JSON.
        path (Path): of the file, for the message.
        number (int): of the line.

    Raises:
        ValueError: naming the file and the line, if it is broken.
    """
    if isinstance(record, ValueError):
        raise ValueError(f"{path}, line {number}: not valid JSON: {record}") from record
    step, data = (record.get("step"), record.get("data")) if isinstance(record, dict) else (None, None)
    if type(step) is not int or not isinstance(data, dict):
        raise ValueError(
            f'{path}, line {number}: expected {{"step": an integer, "data": {{...}}}}; it is {str(record)[:80]}'
        )
    return step, data
