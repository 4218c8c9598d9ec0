"""One objective: a reward with its range and its priority."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: The largest size of a reward, a bound, a penalty or a priority: sums of squares of their products stay finite.
LARGEST = 1e70


@dataclass(frozen=True)
class Objective:
    """One reward among several.

    Attributes:
        name (str): unique among the objectives.
        minimum (float | None): the lowest value that the reward can take; CV is measured from there. None if it is not
            known: methods that need it then take 0, and no reward is checked against it.
        maximum (float | None): the highest; None if it is not known.
        priority (float): static factor, at least 0, that multiplies after the dynamic weight.

    Raises:
        ValueError: for a number that is not finite or larger than 1e70 in size, a negative priority, or a maximum below
            the minimum.
    """

    name: str
    minimum: float | None = None
    maximum: float | None = None
    priority: float = 1.0

    def __post_init__(self) -> None:
        for field in ("minimum", "maximum", "priority"):
            value = getattr(self, field)
            if value is None and field != "priority":
                continue
            if not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
                raise ValueError(
                    f"the {field} of {self.name!r} is {value!r}; expected a finite number, at most {LARGEST:g} in size"
                )
        if self.priority < 0:
            raise ValueError(f"the priority of {self.name!r} is {self.priority}; expected a number that is at least 0")
        if self.minimum is not None and self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(
                f"the maximum of {self.name!r} is {self.maximum}; expected at least its minimum {self.minimum}"
            )

    @property
    def range(self) -> tuple[float, float]:
        """Minimum and maximum; NaN where not known."""
        return (
            math.nan if self.minimum is None else float(self.minimum),
            math.nan if self.maximum is None else float(self.maximum),
        )
