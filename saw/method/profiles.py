"""The numerical constants of the method, by the code they are taken from.

Group normalisation, whitening and the CV each add a small constant somewhere, and every implementation has its own. A
profile names them all: :data:`PROFILES` has those of the paper, of the authors' released code, of verl and of TRL.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Profile(BaseModel):
    """The constants of one implementation; the defaults are the paper's.

    Attributes:
        cv_shift (float): added to every reward, after its minimum is subtracted, before the CV.
        cv_eps (float): added to the mean in the denominator of the CV.
        equal_below (float): weights are equal if the sum of the CVs is below this.
        sum_of_weights (Literal["one", "objectives"]): the sum of the weights where they multiply rewards
            (:func:`saw.method.aggregation.sum_then_normalise`).
        lone_sample (Literal["zero", "raw"]): the advantage of a group of one: ``"zero"``, because there is nothing to
            compare it with, or ``"raw"``, the reward itself (as if the group had mean 0 and std 1).
        ddof (Literal[0, 1]): variances are divided by the number of values minus this: in a group, in whitening and in
            the CV.
        group_eps (float): added to the standard deviation of a group.
        whitening (Literal["tokens", "samples", "none"]): what the batch is whitened over where the method whitens
            (:func:`saw.method.aggregation.normalise_then_sum`): every response token counts once, or every sample with
            a reward; ``"none"`` leaves whitening out.
        whitening_eps (float): added to the variance or the standard deviation of the batch.
        whitening_eps_on (Literal["variance", "std"]): to which of the two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cv_shift: float = Field(default=1e-8, ge=0.0)
    cv_eps: float = Field(default=1e-8, gt=0.0)
    equal_below: float = Field(default=1e-8, gt=0.0)
    sum_of_weights: Literal["one", "objectives"] = "one"
    lone_sample: Literal["zero", "raw"] = "zero"
    ddof: Literal[0, 1] = 1
    group_eps: float = Field(default=1e-6, gt=0.0)
    whitening: Literal["tokens", "samples", "none"] = "tokens"
    whitening_eps: float = Field(default=1e-8, gt=0.0)
    whitening_eps_on: Literal["variance", "std"] = "variance"


#: The paper's Algorithm 1. It has a small constant whose value the sources do not give; 1e-8 is ours.
PAPER = Profile()

#: The authors' released code, checked against golden values.
RELEASED = Profile(cv_shift=0.0, sum_of_weights="objectives", lone_sample="raw")

#: verl 0.9.1's own estimators ``grpo``, for a reward that is the sum of the objectives, and ``gdpo``.
VERL = Profile(sum_of_weights="objectives", lone_sample="raw")

#: TRL 1.16.0's ``sum_then_normalize`` and ``normalize_then_sum``.
TRL = Profile(
    sum_of_weights="objectives", group_eps=1e-4, whitening="samples", whitening_eps=1e-4, whitening_eps_on="std"
)

#: The paper's constants for the weights in ``VERL`` and ``TRL``, which have no CV.
PROFILES: Mapping[str, Profile] = MappingProxyType({"paper": PAPER, "released": RELEASED, "verl": VERL, "trl": TRL})
