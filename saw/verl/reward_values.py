"""Converts what a reward function returned into plain Python numbers; the only place that does."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import Any


def plain(value: Any) -> Any:
    """The Python value of a numpy or torch scalar, or of an array with one element; anything else unchanged."""
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    try:
        return item()
    except (ValueError, RuntimeError):  # numpy's and torch's errors for an array of several
        return value


def reward_value(value: Any) -> float:
    """A reward as a float, NaN for one that is missing.

    Args:
        value: a Python, numpy or torch number, a bool, or None or NaN for a missing reward.

    Raises:
        TypeError: for anything else, including text that spells a number.
    """
    value = plain(value)
    if value is None:
        return math.nan
    if isinstance(value, (Real, Decimal)):
        return float(value)
    raise TypeError(f"it is {value!r} ({type(value).__name__}); expected a number, or None or NaN if it is missing")
