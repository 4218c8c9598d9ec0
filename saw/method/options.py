"""Typed options of the advantage computation: which numerical reading of the method is meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class Profile:
    """The constants of one reading of the method.

    Attributes:
        cv_shift (float): added to every reward, after its minimum is taken off, before the CV.
        cv_eps (float): added to the mean in the denominator of the CV.
        equal_below (float): weights are equal when the sum of the CVs is below this.
        sum_of_weights (Literal["one", "objectives"]): what the weights add up to where they multiply
            rewards (:func:`saw.method.aggregation.sum_then_normalise`).
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


class GradientOptions(BaseModel):
    """How the objectives' policy gradients are compared (arXiv 2509.11452).

    Attributes:
        lr (float | None): of the mirror ascent. None is the actor's learning rate, as in that paper's code; outside of
            verl there is none, and it must be given.
        mu (float): weight of the regulariser, by which the step is divided; 1e-5 in that paper's scripts.
        accumulate (int): steps over which the influence is averaged before the weights move.
        layers (tuple[int, ...] | None): the decoder layers whose gradients are compared; None compares all parameters.
            The backward passes end at the lowest of them. That paper's script takes 10 to 25 of 36.
        reduction (Literal["mean", "sum"]): what a gradient is of. ``mean``: of the loss over the whole batch, as verl
            aggregates it for the update. ``sum``: of the micro-batches' own losses, each divided by its own tokens (or
            samples), added up on a rank and averaged over the ranks, as in the code of SAW's authors and of that paper;
            it grows with the number of micro-batches.
        clip (float | None): the largest norm that an objective's gradient keeps before the inner products; None leaves
            all as they are. 1 in the code of SAW's authors and of that paper. Of the gradient methods alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lr: float | None = Field(default=None, gt=0.0)
    mu: float = Field(default=1e-5, gt=0.0)
    accumulate: int = Field(default=1, ge=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    reduction: Literal["mean", "sum"] = "mean"
    clip: float | None = Field(default=None, gt=0.0)


#: What the profile ``released`` goes with (configs/reading/as_released.yaml); every method may carry it.
RELEASED_GRADIENT = GradientOptions(reduction="sum", clip=1.0)


class Options(BaseModel):
    """Options of :func:`saw.compute_advantage`; unknown fields and values are refused by name.

    Everything but the profile is off by default, so that the default is the paper.

    Attributes:
        profile (Literal["paper", "released"]): the numerical reading, see :data:`PROFILES`.
        informativeness (str): a measure in :mod:`saw.method.informativeness`, by which the SAW methods weigh; ``cv`` is
            the paper's.
        over (Literal["batch", "group"]): where it is measured; ``group`` gives each prompt its own weights.
        ema (float): in [0, 1), share of the last step's weights in this step's.
        floor (float): in [0, 1/K], the least weight of an objective.
        max_change (float | None): in (0, 1], the most that a weight may change from one step to the next.
        log_only (bool): compute the weights, and use equal ones.
        static_weights (tuple[float, ...] | None): of the static methods; they are scaled to add up to 1.
        seed (int | None): of the random methods; the same step of the same seed has the same weights. None is 0.
        gradient (GradientOptions): of the gradient methods and of ``informativeness="gradient_norm"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    profile: Literal["paper", "released"] = "paper"
    informativeness: str = "cv"
    over: Literal["batch", "group"] = "batch"
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    max_change: float | None = Field(default=None, gt=0.0, le=1.0)
    log_only: bool = False
    static_weights: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    seed: int | None = Field(default=None, ge=0)
    gradient: GradientOptions = GradientOptions()

    @model_validator(mode="after")
    def _possible(self) -> Options:
        if self.static_weights is not None and sum(self.static_weights) <= 0:
            raise ValueError(f"options.static_weights is {self.static_weights}; expected one above 0")
        for option in ("ema", "floor", "max_change"):
            if self.log_only and (value := getattr(self, option)):
                raise ValueError(f"options.{option} is {value}, and log_only uses equal weights; leave one of them out")
        return self

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
