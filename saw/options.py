"""Typed options of the advantage computation: which numerical reading of the method is meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Profile:
    """The constants of one reading of the method.

    Attributes:
        cv_shift (float): added to every reward, after its minimum is taken off, before the CV.
        cv_eps (float): added to the mean in the denominator of the CV.
        equal_below (float): weights are equal when the sum of the CVs is below this.
        sum_of_weights (Literal["one", "objectives"]): what the weights add up to where they multiply
            rewards (:func:`saw.aggregation.sum_then_normalise`).
        lone_sample (Literal["zero", "raw"]): the advantage of a group of one; ``"zero"``, as it has
            nothing to be compared with, or ``"raw"``, the reward itself (mean 0 and std 1).
        group_eps (float): added to the standard deviation of a group.
        whitening_eps (float): added to the variance of the batch.
    """

    cv_shift: float
    cv_eps: float
    equal_below: float
    sum_of_weights: Literal["one", "objectives"]
    lone_sample: Literal["zero", "raw"]
    group_eps: float = 1e-6
    whitening_eps: float = 1e-8


#: The paper's Algorithm 1. The paper names a small constant, and the sources do not give its value: 1e-8 is ours.
PAPER = Profile(cv_shift=1e-8, cv_eps=1e-8, equal_below=1e-8, sum_of_weights="one", lone_sample="zero")

#: The authors' released code, checked against golden values.
RELEASED = Profile(cv_shift=0.0, cv_eps=1e-8, equal_below=1e-8, sum_of_weights="objectives", lone_sample="raw")

PROFILES: dict[str, Profile] = {"paper": PAPER, "released": RELEASED}


class Options(BaseModel):
    """Options of :func:`saw.compute_advantage`; unknown fields and values are refused by name.

    Attributes:
        profile (Literal["paper", "released"]): the numerical reading, see :data:`PROFILES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: Literal["paper", "released"] = "paper"

    @classmethod
    def of(cls, options: Options | Mapping[str, object] | None) -> Options:
        """Turn what a caller passed, an :class:`Options`, a mapping of its fields or nothing, into an object."""
        if options is None:
            return cls()
        return options if isinstance(options, Options) else cls.model_validate(dict(options))

    @property
    def numerics(self) -> Profile:
        """The constants of the chosen profile."""
        return PROFILES[self.profile]
