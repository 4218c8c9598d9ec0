"""Objectives written as columns, which a hand-computed case reads best."""

from collections.abc import Sequence
from typing import Any

import saw


def objectives(**columns: Sequence[Any]) -> list[saw.Objective]:
    """One objective per entry: ``name``, ``minimum``, ``maximum`` and ``priority`` are columns."""
    number = len(next(iter(columns.values())))
    columns = {"name": [f"objective {i}" for i in range(number)], **columns}
    return [saw.Objective(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
