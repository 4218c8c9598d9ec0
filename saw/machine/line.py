"""The result of one check of the machine: a line of the doctor's table, or the message of a refused start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "warning", "missing"]


@dataclass(frozen=True)
class Line:
    """The result of one check.

    Attributes:
        status (Status): ``missing`` if the training cannot start, or would fail later; ``warning`` if it can start;
            ``note`` for what a script makes before it starts the training.
        thing (str): name of what was checked.
        found (str): what was found.
        needed (str): what the experiment needs; empty without an experiment.
        remedy (str): what to do; empty if nothing is.
    """

    status: Status
    thing: str
    found: str
    needed: str = ""
    remedy: str = ""


def ok(thing: str, found: str, needed: str = "") -> Line:
    """Nothing is wrong."""
    return Line("ok", thing, found, needed)


def note(thing: str, found: str, needed: str, remedy: str) -> Line:
    """Something does not exist yet; a script makes it before it starts the training."""
    return Line("note", thing, found, needed, remedy)


def warning(thing: str, found: str, needed: str, remedy: str) -> Line:
    """The training can start, but the user should know."""
    return Line("warning", thing, found, needed, remedy)


def missing(thing: str, found: str, needed: str, remedy: str) -> Line:
    """The training cannot start."""
    return Line("missing", thing, found, needed, remedy)


def gigabytes(number: float) -> str:
    """Bytes for a reader."""
    if number < 1e9:
        return f"{number / 1e6:.0f} MB"
    return f"{number / 1e9:.1f} GB" if number < 1e10 else f"{number / 1e9:.0f} GB"
