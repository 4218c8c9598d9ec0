"""One objective: a reward with its range and its priority."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

#: Largest absolute value of a reward, a bound, a penalty or a priority; keeps sums of squares of their products finite.
LARGEST = 1e70

#: What an objective counts as where another does not reach the threshold that it requires.
Otherwise = Literal["minimum", "missing"]


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
        requires (Mapping[str, float] | None): other objectives and the reward that each must reach for this one to
            count, such as ``{"format": 1.0}`` (:mod:`saw.method.conditions`).
        otherwise (Literal["minimum", "missing"]): what this objective counts as in the other samples.

    Raises:
        ValueError: for a number that is not finite or above 1e70 in absolute value, a negative priority, a maximum
            below the minimum, a turn below 1, or a condition that is not a mapping from other objectives to
            numbers.
    """

    name: str
    minimum: float | None = None
    maximum: float | None = None
    priority: float = 1.0
    turn: int | None = None
    requires: Mapping[str, float] | None = field(default=None, hash=False)
    otherwise: Otherwise = "minimum"

    def __post_init__(self) -> None:
        for what in ("minimum", "maximum", "priority"):
            value = getattr(self, what)
            if value is None and what != "priority":
                continue
            if not isinstance(value, Real) or not abs(value) <= LARGEST:  # type: ignore[operator]
                raise ValueError(
                    f"the {what} of {self.name!r} is {value!r}; expected a finite number, at most {LARGEST:g} in size"
                )
        if self.priority < 0:
            raise ValueError(f"the priority of {self.name!r} is {self.priority}; expected a number that is at least 0")
        if self.minimum is not None and self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(
                f"the maximum of {self.name!r} is {self.maximum}; expected at least its minimum {self.minimum}"
            )
        if self.turn is not None and (type(self.turn) is not int or self.turn < 1):
            raise ValueError(f"the turn of {self.name!r} is {self.turn!r}; expected an integer that is at least 1")
        self._check_condition()

    def _check_condition(self) -> None:
        if self.otherwise not in get_args(Otherwise):
            allowed = " or ".join(map(repr, get_args(Otherwise)))
            raise ValueError(f"otherwise of {self.name!r} is {self.otherwise!r}; expected {allowed}")
        if self.requires is None:
            if self.otherwise != "minimum":
                raise ValueError(
                    f"otherwise of {self.name!r} is {self.otherwise!r}, but it requires no other objective"
                )
            return
        if not isinstance(self.requires, Mapping) or not self.requires or self.name in self.requires:
            raise ValueError(
                f"{self.name!r} requires {self.requires!r}; expected other objectives and the reward that each must "
                "reach, such as {'format': 1.0}"
            )
        for other, threshold in self.requires.items():
            if not isinstance(threshold, Real) or not abs(threshold) <= LARGEST:  # type: ignore[operator]
                raise ValueError(f"{self.name!r} requires {other!r} to reach {threshold!r}; expected a finite number")
        if self.otherwise == "minimum" and self.minimum is None:
            raise ValueError(
                f"{self.name!r} counts as its minimum where {', '.join(map(repr, self.requires))} falls short, and its "
                "minimum is not set: set it, or otherwise='missing'"
            )

    @property
    def range(self) -> tuple[float, float]:
        """Minimum and maximum; NaN if unknown."""
        return (
            math.nan if self.minimum is None else float(self.minimum),
            math.nan if self.maximum is None else float(self.maximum),
        )
