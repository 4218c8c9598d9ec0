"""One objective: a reward with its range and its priority."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

#: Largest absolute value of a reward, a bound, a penalty or a priority; keeps sums of squares of their products finite.
LARGEST = 1e70


@dataclass(frozen=True)
class Objective:
    """One reward among several.

    Attributes:
        name (str): unique among the objectives.
        minimum (float | None): the lowest possible reward; CV is measured from it. None if unknown: methods that need
            it then use 0, and rewards are not checked against it.
        maximum (float | None): the highest possible reward; None if unknown.
        priority (float): static factor, at least 0, that multiplies the dynamic weight.
        turn (int | None): the model's turn, from 1, whose tokens alone get this objective's advantage
            (:mod:`saw.method.turns`); None for the whole response. A sample without that turn has no such reward: NaN.

    Raises:
        ValueError: for a number that is not finite or above 1e70 in absolute value, a negative priority, a maximum
            below the minimum, or a turn below 1.
    """

    name: str
    minimum: float | None = None
    maximum: float | None = None
    priority: float = 1.0
    turn: int | None = None

    def __post_init__(self) -> None:
        for field in ("minimum", "maximum", "priority"):
            value = getattr(self, field)
            if value is None and field != "priority":
                continue
            if not isinstance(value, Real) or not abs(value) <= LARGEST:  # type: ignore[operator]
                raise ValueError(
                    f"the {field} of {self.name!r} is {value!r}; expected a finite number, at most {LARGEST:g} in size"
                )
        if self.priority < 0:
            raise ValueError(f"the priority of {self.name!r} is {self.priority}; expected a number that is at least 0")
        if self.minimum is not None and self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(
                f"the maximum of {self.name!r} is {self.maximum}; expected at least its minimum {self.minimum}"
            )
        if self.turn is not None and (type(self.turn) is not int or self.turn < 1):
            raise ValueError(f"the turn of {self.name!r} is {self.turn!r}; expected an integer that is at least 1")

    @property
    def range(self) -> tuple[float, float]:
        """Minimum and maximum; NaN if unknown."""
        return (
            math.nan if self.minimum is None else float(self.minimum),
            math.nan if self.maximum is None else float(self.maximum),
        )
