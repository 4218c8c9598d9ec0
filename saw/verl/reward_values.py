"""What a reward function returned, as plain Python numbers: the one place where that is decided."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import Any


def plain(value: Any) -> Any:
    """The Python value in a numpy or torch scalar, or in an array of one element; anything else as it is."""
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    try:
        return item()
    except (ValueError, RuntimeError):  # numpy's and torch's word for an array of several
        return value


def reward_value(value: Any) -> float:
    """A reward as a float, NaN for one that is missing.

    Args:
        value: a number of Python, numpy or torch, a truth value, or None or NaN for a missing reward.

    Raises:
        TypeError: for anything else, text included, even if it spells a number.
    """
    value = plain(value)
    if value is None:
        return math.nan
    if isinstance(value, (Real, Decimal)):
        return float(value)
    raise TypeError(f"it is {value!r} ({type(value).__name__}); expected a number, or None or NaN where it is missing")
