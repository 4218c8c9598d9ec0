"""Typed options of the advantage computation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from saw.method.profiles import PROFILES, Profile


class GradientOptions(BaseModel):
    """How the objectives' policy gradients are compared (arXiv 2509.11452).

    Attributes:
        lr (float | None): learning rate of the mirror ascent. None uses the actor's, as in that paper's code; it must
            be set outside of verl.
        mu (float): weight of the regulariser; divides the step. 1e-5 in that paper's scripts.
        accumulate (int): steps over which the influence is averaged before the weights are updated.
        layers (tuple[int, ...] | None): the decoder layers whose gradients are compared; None compares all parameters.
            The backward passes stop at the lowest of them. That paper's script uses 10 to 25 of 36.
        reduction (Literal["mean", "sum"]): the loss that is differentiated. ``mean``: the loss over the whole batch, as
            verl aggregates it for the update. ``sum``: the loss of each micro-batch, divided by its own tokens (or
            samples), summed on each rank and averaged over the ranks, as in the code of SAW's authors and of that
            paper; it grows with the number of micro-batches.
        clip (float | None): norm to which each objective's gradient is clipped before the inner products; None does not
            clip. 1 in the code of SAW's authors and of that paper. Used by the gradient methods only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lr: float | None = Field(default=None, gt=0.0)
    mu: float = Field(default=1e-5, gt=0.0)
    accumulate: int = Field(default=1, ge=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    reduction: Literal["mean", "sum"] = "mean"
    clip: float | None = Field(default=None, gt=0.0)


#: Gradient options of the ``released`` reading (configs/reading/as_released.yaml); accepted with every method.
RELEASED_GRADIENT = GradientOptions(reduction="sum", clip=1.0)


class GradNormOptions(BaseModel):
    """Options of ``gradnorm`` (:func:`saw.method.multi_gradient.gradnorm`); the defaults are the released code's.

    Attributes:
        alpha (float): at least 0; how strongly an objective that lags behind is favoured.
        lr (float): step size of the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    alpha: float = Field(default=1.5, ge=0.0)
    lr: float = Field(default=0.025, gt=0.0)


class CTWAOptions(BaseModel):
    """Options of ``ctwa`` (:func:`saw.method.adaptive.covariance_targeted`); the defaults are the released code's.

    Attributes:
        targets (float | tuple[float, ...]): the covariance of an objective's rewards with the advantages below which
            its weight grows; one for all, or one per objective.
        enough (tuple[float | None, ...] | None): per objective, the mean reward at which its weight stops
            growing; None for no limit.
        ema (float): in [0, 1), share of the earlier covariances in the average that is compared.
        lr (float): step size of the logarithms of the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    targets: float | tuple[float, ...] = 0.05
    enough: tuple[float | None, ...] | None = None
    ema: float = Field(default=0.9, ge=0.0, lt=1.0)
    lr: float = Field(default=0.02, gt=0.0)


class LagrangianOptions(BaseModel):
    """Options of ``lagrangian`` (:func:`saw.method.adaptive.lagrangian`).

    Attributes:
        targets (tuple[float | None, ...] | None): per objective, the mean reward that it must reach, or None for an
            objective to maximise; at least one must be None.
        lr (float): step size of the multipliers; the default is the released code's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    targets: tuple[float | None, ...] | None = None
    lr: float = Field(default=0.01, gt=0.0)

    @field_validator("targets")
    @classmethod
    def _one_to_maximise(cls, targets: tuple[float | None, ...] | None) -> tuple[float | None, ...] | None:
        if targets is not None and None not in targets:
            raise ValueError(f"it is {targets}; expected at least one null, for an objective to maximise")
        return targets


#: The options of single methods, by their field in :class:`Options`.
SECTIONS: dict[str, type[BaseModel]] = {
    "gradient": GradientOptions,
    "gradnorm": GradNormOptions,
    "ctwa": CTWAOptions,
    "lagrangian": LagrangianOptions,
}


class Options(BaseModel):
    """Options of :func:`saw.compute_advantage`; unknown fields and values are refused by name.

    The defaults are the paper's method; every addition is off.

    Attributes:
        profile (str | Profile): the numerical constants: a name in :data:`~saw.method.profiles.PROFILES` (``paper``,
            ``released``, ``verl``, ``trl``), or your own :class:`saw.Profile`, which may be given as a mapping of the
            fields that differ from the paper's.
        informativeness (str): the measure in :mod:`saw.method.informativeness` from which the SAW methods compute their
            weights; ``cv`` is the paper's.
        over (Literal["batch", "group"]): what the measure covers; ``group`` gives each prompt its own weights.
        ema (float): in [0, 1), share of the previous step's weights in this step's.
        floor (float): in [0, 1/K], the smallest weight of an objective.
        max_change (float | None): in (0, 1], the largest change of a weight from one step to the next.
        log_only (bool): compute the weights, but use equal ones.
        static_weights (tuple[float, ...] | None): for the static methods; scaled to sum to 1.
        seed (int | None): for the random methods; the same seed and step give the same weights. None is 0.
        gradient (GradientOptions): for the gradient methods and ``informativeness="gradient_norm"``.
        gradnorm (GradNormOptions): for the method of that name.
        ctwa (CTWAOptions): for the method of that name.
        lagrangian (LagrangianOptions): for the method of that name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    profile: str | Profile = "paper"
    informativeness: str = "cv"
    over: Literal["batch", "group"] = "batch"
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    max_change: float | None = Field(default=None, gt=0.0, le=1.0)
    log_only: bool = False
    static_weights: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    seed: int | None = Field(default=None, ge=0)
    gradient: GradientOptions = GradientOptions()
    gradnorm: GradNormOptions = GradNormOptions()
    ctwa: CTWAOptions = CTWAOptions()
    lagrangian: LagrangianOptions = LagrangianOptions()

    @field_validator("profile", mode="before")
    @classmethod
    def _known_profile(cls, given: Any) -> Any:
        if isinstance(given, Profile) or (isinstance(given, str) and given in PROFILES):
            return given
        if not isinstance(given, Mapping):
            allowed = f"{', '.join(PROFILES)}, or a mapping of saw.Profile's fields"
            raise ValueError(f"it is {given!r}; allowed are {allowed}")
        try:
            return Profile.model_validate(dict(given))
        except ValidationError as error:
            raise ValueError("; ".join(map(_fault, error.errors()))) from error

    @model_validator(mode="after")
    def _possible(self) -> Options:
        if self.static_weights is not None and not 0 < sum(self.static_weights) < math.inf:
            raise ValueError(
                f"options.static_weights is {self.static_weights}; expected at least one above 0, and a finite sum"
            )
        for option in ("ema", "floor", "max_change"):
            if self.log_only and (value := getattr(self, option)):
                raise ValueError(f"options.{option} is {value}, and log_only uses equal weights; leave one of them out")
        return self

    @classmethod
    def of(cls, options: Options | Mapping[str, object] | None) -> Options:
        """Return options given as an :class:`Options`, a mapping of its fields or None as an :class:`Options`."""
        if options is None:
            return cls()
        if not isinstance(options, Options | Mapping):
            raise TypeError(f"options is {options!r}; expected saw.Options, or a mapping of its fields")
        return options if isinstance(options, Options) else cls.model_validate(dict(options))

    @property
    def numerics(self) -> Profile:
        """The constants of the chosen profile."""
        return self.profile if isinstance(self.profile, Profile) else PROFILES[self.profile]


def _fault(fault: Mapping[str, Any]) -> str:
    """A message for one fault of a profile: the field, what is wrong, the value."""
    field = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"there is no {field!r}; allowed are {', '.join(Profile.model_fields)}"
    return f"{field} is {fault['input']!r}: {fault['msg']}"
