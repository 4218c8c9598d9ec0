"""The configuration section ``saw``, typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from saw.faults import readable
from saw.method.conditions import check_conditions
from saw.method.objective import LARGEST, Otherwise
from saw.method.options import Options
from saw.method.registry import check_combination, check_priorities, get_method
from saw.method.turns import check_method, names_turns
from saw.verl.names import NAME, RESERVED_NAMES


class ConfigError(ValueError, CompactHydraException):
    """A setting that cannot work; the message names the key, the value and what is allowed.

    Hydra, and so verl's own command, shows an exception of its type without a traceback.
    """


class ObjectiveSettings(BaseModel):
    """One reward among several.

    Attributes:
        name (str): its key in the dict that the reward function returns.
        minimum (float | Literal["running"] | None): the lowest possible value; SAW's CV is measured from it.
            None takes it from the reward function, which must declare it (:func:`saw.rewards.returns`). ``running`` is
            the lowest value seen so far, for an unbounded reward model; the CV shifts whenever it falls.
        maximum (float | None): the highest possible value; a reward above it is reported.
        priority (float): at least 0; a static factor on the dynamic weight.
        requires (dict[str, float]): other objectives and the reward that each must reach for this one to count
            (:mod:`saw.method.conditions`).
        otherwise (Literal["minimum", "missing"]): what this objective counts as in the other samples.
        turn (int | None): the model's turn, from 1, whose tokens alone get its advantage (:mod:`saw.method.turns`);
            None for the whole response.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    minimum: float | Literal["running"] | None = None
    maximum: float | None = None
    priority: float = Field(default=1.0, ge=0.0, le=LARGEST)
    requires: dict[str, float] = {}
    otherwise: Otherwise = "minimum"
    turn: int | None = Field(default=None, ge=1)

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in RESERVED_NAMES:
            raise ValueError(f"{name!r} is reserved by verl; use another name than {', '.join(RESERVED_NAMES)}")
        return name

    @model_validator(mode="after")
    def _range(self) -> ObjectiveSettings:
        if isinstance(self.minimum, float) and self.maximum is not None and self.maximum <= self.minimum:
            raise ValueError(f"maximum is {self.maximum:g}; expected a number above the minimum {self.minimum:g}")
        return self

    @model_validator(mode="after")
    def _condition(self) -> ObjectiveSettings:
        if self.name in self.requires:
            raise ValueError(f"requires is {self.requires}; expected other objectives than {self.name!r} itself")
        if not self.requires and self.otherwise != "minimum":
            raise ValueError(f"otherwise is {self.otherwise!r}, but requires is empty; set it, or leave out otherwise")
        if self.requires and self.otherwise == "minimum" and self.minimum == "running":
            raise ValueError("otherwise is 'minimum', and the minimum is 'running', which moves; set it to 'missing'")
        return self


#: Objectives as they may be written.
_EXAMPLE = "a mapping such as {accuracy: {minimum: 0, maximum: 1}}"
#: What a mapping of objectives has for each name.
_OF_AN_OBJECTIVE = [field for field in ObjectiveSettings.model_fields if field != "name"]


class Settings(BaseModel):
    """The section ``saw`` of the configuration.

    Attributes:
        method (str): a name in :data:`saw.METHODS`.
        objectives (tuple[ObjectiveSettings, ...]): given as a mapping from name to the rest, or as a list with names.
        options (Options): see :class:`saw.Options`.
        kl_in_reward (Literal["combined", "grpo_only"]): the methods to which verl's KL penalty in the reward applies
            (``algorithm.use_kl_in_reward``). combined: all methods with a combined reward, from which it is subtracted.
            grpo_only: only plain ``grpo``, as in the released code; needs ``profile: released``.
        max_missing (float): largest share of a step's samples that may lack a reward; above it the training stops, with
            a checkpoint of the previous step. A lost sample, or one whose reward function raised, has no reward. A step
            without any reward always stops the training.
        poll_interval (float): seconds between polls for finished rollouts; verl's default of 2.0 adds a second per
            step on average.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str
    objectives: tuple[ObjectiveSettings, ...] = Field(min_length=1)
    options: Options = Options()
    kl_in_reward: Literal["combined", "grpo_only"] = "combined"
    max_missing: float = Field(default=1.0, ge=0.0, le=1.0)
    poll_interval: float = Field(default=0.2, gt=0.0)

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        try:
            get_method(method)
        except ValueError as error:
            raise ValueError(
                f"{error}. One of your own is known once its module is loaded: VERL_USE_EXTERNAL_MODULES=MODULE before "
                "the command (docs/extend.md)"
            ) from None
        return method

    @field_validator("objectives", mode="before")
    @classmethod
    def _named(cls, objectives: Any) -> Any:
        if isinstance(objectives, list | tuple):
            return objectives
        if not isinstance(objectives, Mapping):
            raise ValueError(f"it is {objectives!r}; expected {_EXAMPLE}, or a list of mappings with a name each")
        for name, rest in objectives.items():
            if not isinstance(rest, Mapping | None) or "name" in (rest or {}):
                raise ValueError(f"{name!r} is {rest!r}; expected {', '.join(_OF_AN_OBJECTIVE)}, or nothing")
        return [{"name": str(name), **(rest or {})} for name, rest in objectives.items()]

    @field_validator("objectives")
    @classmethod
    def _unique(cls, objectives: tuple[ObjectiveSettings, ...]) -> tuple[ObjectiveSettings, ...]:
        names = [objective.name for objective in objectives]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} occurs twice; every objective needs a unique name")
        return objectives

    @model_validator(mode="after")
    def _combination(self) -> Settings:
        if self.kl_in_reward == "grpo_only" and self.options.profile != "released":
            raise ValueError(
                f"kl_in_reward is 'grpo_only', as in the released code, but options.profile is "
                f"{self.options.profile!r}, in which grpo subtracts the penalty from the mean of the rewards, not from "
                "their sum; set both with reading=as_released, or set options.profile to 'released'"
            )
        check_combination(self.method, self.options, len(self.objectives))
        check_priorities(self.method, [objective.priority for objective in self.objectives])
        # only the names; the ranges may be the reward function's (saw.verl.reward_ranges)
        check_conditions(self.conditions, dict.fromkeys(self.names, (-math.inf, math.inf)))
        check_method(self.method, self.options, self.objectives)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives' names, in order: the columns of the reward matrix."""
        return tuple(objective.name for objective in self.objectives)

    @property
    def conditions(self) -> dict[str, dict[str, float]]:
        """What each objective requires of others."""
        return {objective.name: objective.requires for objective in self.objectives}

    @property
    def names_turns(self) -> bool:
        """Whether any objective belongs to a turn."""
        return names_turns(self.objectives)

    @property
    def feels_kl_in_reward(self) -> bool:
        """Whether the penalty that verl subtracts from the rewards applies to the method."""
        return self.kl_in_reward == "combined" or self.method == "grpo"

    @property
    def gradient_clip(self) -> float | None:
        """The norm to which each step's gradients are clipped before they are compared; None for no clipping."""
        return self.options.gradient.clip if self._ascends else None

    @property
    def needs_gradients(self) -> bool:
        """Whether the actor's workers must compute a policy gradient of each objective."""
        return "gradients" in get_method(self.method).needs(self.options)

    @property
    def _ascends(self) -> bool:
        """Whether the weights follow mirror ascent, which has a learning rate."""
        return "learning_rate" in get_method(self.method).needs(self.options)

    def _with_actor_lr(self, config: DictConfig) -> Settings:
        """The learning rate of mirror ascent defaults to the actor's."""
        lr = OmegaConf.select(config, "actor_rollout_ref.actor.optim.lr", default=None)
        if not self._ascends or self.options.gradient.lr is not None or lr is None:
            return self
        gradient = self.options.gradient.model_copy(update={"lr": float(lr)})
        return self.model_copy(update={"options": self.options.model_copy(update={"gradient": gradient})})

    @classmethod
    def of(cls, config: DictConfig) -> Settings:
        """Read the section ``saw`` of a whole verl configuration.

        Raises:
            ConfigError: if it is absent or wrong.
        """
        section = OmegaConf.select(config, NAME)
        if section is None:
            raise ConfigError(
                "the configuration has no section 'saw'; add +plugin=saw and your objectives, for example "
                "'+saw.objectives={accuracy: {minimum: 0, maximum: 1}}'"
            )
        if isinstance(section, DictConfig):
            section = OmegaConf.to_container(section, resolve=True)
        try:
            settings = cls.model_validate(section)
            return settings._with_actor_lr(config)
        except ValidationError as error:
            unset = f"{NAME}.objectives is not set"
            text = readable(error, NAME, cls).replace(unset, f"{unset}; expected {_EXAMPLE}")
            given = section.get("objectives") if isinstance(section, Mapping) else None
            for number, name in enumerate(given if isinstance(given, Mapping) else ()):
                text = text.replace(f"{NAME}.objectives.{number}.", f"{NAME}.objectives.{name}.")
            raise ConfigError(text) from error


def check_returned(settings: Settings, returned: Any) -> None:
    """Check that a reward function returns every objective.

    Raises:
        ConfigError: naming the objectives that it does not return, and those that it does.
    """
    absent = [name for name in settings.names if name not in returned]
    if absent:
        allowed = ", ".join(sorted(key for key in returned if key not in RESERVED_NAMES))
        raise ConfigError(
            f"saw.objectives has {', '.join(map(repr, absent))}, which the reward function does not return; "
            f"it returns {allowed or 'no objective'}"
        )
