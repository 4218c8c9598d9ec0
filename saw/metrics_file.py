"""The file that verl's ``file`` logger writes, across resumed runs.

One JSON object a line, ``{"step": ..., "data": {...}}``. verl empties the file whenever a training starts, so a resumed
one would lose what came before. What stands is therefore put aside first, as ``metrics.1.jsonl`` and so on, and the
parts are read as one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def begin(path: Path, resume: bool) -> None:
    """Make way for a training's metrics: put what stands aside if it is resumed, remove it if it begins anew."""
    if resume:
        put_aside(path)
    else:
        for part in [*_parts(path), path]:
            part.unlink(missing_ok=True)


def put_aside(path: Path) -> None:
    """Rename a file, if it is there and not empty, to ``name.1.ending``, ``name.2.ending`` and so on."""
    if path.exists() and path.stat().st_size:
        path.rename(path.with_name(f"{path.stem}.{len(_parts(path)) + 1}{path.suffix}"))


def read(path: Path) -> dict[int, dict[str, Any]]:
    """The metrics of each step, in order.

    A resumed training starts behind where the one before it stopped: steps after its first were done again, and
    only their second form stands. What both log of its first step (the second may only validate there) is merged.
    """
    steps: dict[int, dict[str, Any]] = {}
    for part in [*_parts(path), path]:
        records = _records(part)
        if records:
            first = records[0][0]
            steps = {step: data for step, data in steps.items() if step <= first}
        for step, data in records:
            steps[step] = {**steps.get(step, {}), **data}
    return dict(sorted(steps.items()))


def _parts(path: Path) -> list[Path]:
    parts = path.parent.glob(f"{path.stem}.*{path.suffix}")
    numbered = {int(part.suffixes[-2][1:]): part for part in parts if part.suffixes[-2][1:].isdecimal()}
    return [numbered[number] for number in sorted(numbered)]


def _records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    # the last line of a killed training may be cut off
    complete = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(record["step"], record["data"]) for record in complete]
