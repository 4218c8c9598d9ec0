"""One line per check, and the table of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from saw.machine.line import Line, missing

#: Width of the table if it is not printed to a terminal.
WIDTH = 100
COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "missing": "bold red"}


def examine(checks: Iterable[tuple[str, Callable[[], Line]]], later: Sequence[str] = ()) -> list[Line]:
    """Run the checks in order; a check that raises becomes a line with its error.

    Args:
        checks (Iterable[tuple[str, Callable[[], Line]]]): each with its name.
        later (Sequence[str]): names of what is made before the training starts, and may be missing now.
    """
    lines = []
    for thing, check in checks:
        try:
            line = check()
        except (Exception, SystemExit) as error:  # noqa: BLE001  one broken part must not hide the others
            remedy = "see the error; the doctor could not check this"
            line = missing(thing, f"{type(error).__name__}: {shortened(str(error))}", "", remedy)
        if line.status == "missing" and thing in later:
            line = replace(line, status="note", found=f"not yet: {line.found}", remedy="")
        lines.append(line)
    return lines


def say(text: str) -> None:
    """Announce a slow check on standard error; the table comes last."""
    sys.stderr.write(f"doctor: {text}\n")
    sys.stderr.flush()


def can_start(lines: Iterable[Line]) -> bool:
    """Whether nothing is missing."""
    return all(line.status != "missing" for line in lines)


def shortened(text: str, most: int = 300) -> str:
    """The beginning of a message, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."


def gibibytes(number: float) -> str:
    """Bytes of a GPU, whose nominal size means GiB."""
    return f"{number / 2**30:.1f} GiB"


def show(lines: Sequence[Line], file: Any = None) -> None:
    """Print the table; a remedy is unwrapped below its line, so that its command can be copied."""
    absent = [line.thing for line in lines if line.status == "missing"]
    summary = f"{len(absent)} missing: {', '.join(absent)}" if absent else "nothing is missing"
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:  # the doctor is needed most in a broken environment
        for line in lines:
            parts = (line.status, line.thing, line.found, line.needed, line.remedy)
            print(" | ".join(parts), file=file or sys.stdout)
        print(f"{summary} (plain text: rich is not installed)", file=file or sys.stdout)
        return
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=WIDTH)

    def row(status: str, *cells: str, style: str = "") -> None:
        """Print one row as a table of its own, so that a remedy can follow it unwrapped."""
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for width in (7, 17):
            grid.add_column(width=width)
        for ratio in (3, 2):
            grid.add_column(ratio=ratio, overflow="fold")
        grid.add_row(Text(status, style=COLOURS.get(status, style)), *(Text(cell, style=style) for cell in cells))
        console.print(grid)

    row("status", "thing", "found", "needed", style="bold")
    for line in lines:
        row(line.status, line.thing, line.found, line.needed)
        if line.remedy:
            console.print(Text(f"         remedy: {line.remedy}"), soft_wrap=True)
    console.print(Text(f"\n{summary}"), soft_wrap=True)
