"""The configuration section ``saw``, typed, and what it demands of the rest of verl's configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from verl.utils.import_utils import load_extern_object
from verl.utils.torch_dtypes import PrecisionType

from saw.methods import check_combination, get_method
from saw.options import Options
from saw.verl import NAME

#: Keys of a reward function's dict that are no objectives: verl reads ``score`` and adds ``reward``.
RESERVED_NAMES = ("score", "reward")


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, the value and what is allowed."""


class Objective(BaseModel):
    """One reward among several.

    Attributes:
        name (str): its key in the dict that the reward function returns.
        minimum (float | Literal["running"] | None): the lowest value that it can take; SAW's CV is measured from there.
            None takes it from the reward function, which must declare it (:func:`saw.rewards.returns`). ``running`` is
            for a reward model without a bound: the lowest value seen so far, which moves the CV while it falls.
        maximum (float | None): the highest; a reward above it is reported.
        priority (float): static factor that multiplies after the dynamic weight, at least 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    minimum: float | Literal["running"] | None = None
    maximum: float | None = None
    priority: float = Field(default=1.0, ge=0.0)

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in RESERVED_NAMES:
            raise ValueError(f"{name!r} is reserved by verl; use another name than {', '.join(RESERVED_NAMES)}")
        return name

    @model_validator(mode="after")
    def _range(self) -> Objective:
        if isinstance(self.minimum, float) and self.maximum is not None and self.maximum <= self.minimum:
            raise ValueError(f"maximum is {self.maximum:g}; expected a number above the minimum {self.minimum:g}")
        return self


class Settings(BaseModel):
    """The section ``saw`` of the configuration.

    Attributes:
        method (str): a name in :data:`saw.METHODS`.
        objectives (tuple[Objective, ...]): written as a mapping from name to the rest, or as a list with names.
        options (Options): see :class:`saw.Options`.
        kl_in_reward (Literal["combined", "grpo_only"]): who feels verl's ``algorithm.use_kl_in_reward``. Combined: the
            penalty is taken off the combined reward; for the methods that have one. grpo_only: as in the released
            code, where plain ``grpo`` feels it and the other methods do not; with its profile only.
        max_missing (float): largest share of a step's samples that may lack a reward; above it the training stops, with
            a checkpoint of the step before.
        poll_interval (float): seconds between two looks for finished rollouts; verl's own is 2.0, which adds a
            second to a step on average.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    objectives: tuple[Objective, ...] = Field(min_length=1)
    options: Options = Options()
    kl_in_reward: Literal["combined", "grpo_only"] = "combined"
    max_missing: float = Field(default=1.0, ge=0.0, le=1.0)
    poll_interval: float = Field(default=0.2, gt=0.0)

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        get_method(method)
        return method

    @field_validator("objectives", mode="before")
    @classmethod
    def _named(cls, objectives: Any) -> Any:
        if not isinstance(objectives, Mapping):
            return objectives
        return [{"name": str(name), **(rest or {})} for name, rest in objectives.items()]

    @field_validator("objectives")
    @classmethod
    def _unique(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        names = [objective.name for objective in objectives]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is there twice; every objective needs a name of its own")
        return objectives

    @model_validator(mode="after")
    def _combination(self) -> Settings:
        if self.kl_in_reward == "grpo_only" and self.options.profile != "released":
            raise ValueError(
                f"kl_in_reward is 'grpo_only', as in the released code, and options.profile is "
                f"{self.options.profile!r}, in which grpo takes the penalty off the mean of the rewards instead of "
                "their sum; set both by reading=as_released, or options.profile to 'released'"
            )
        check_combination(self.method, self.options, len(self.objectives))
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives' names, in order: the columns of the reward matrix."""
        return tuple(objective.name for objective in self.objectives)

    @property
    def feels_kl_in_reward(self) -> bool:
        """Whether the method reads the penalty where verl takes one off the rewards."""
        return self.kl_in_reward == "combined" or self.method == "grpo"

    @property
    def gradient_clip(self) -> float | None:
        """The norm to which each step's gradients are clipped before they are compared; None where they are not."""
        return self.options.gradient.clip if get_method(self.method).ascends else None

    @property
    def needs_gradients(self) -> bool:
        """Whether the actor's workers must compute a policy gradient of each objective."""
        return get_method(self.method).needs_gradients(self.options)

    def _with_actor_lr(self, config: DictConfig) -> Settings:
        """The mirror ascent's learning rate is the actor's where no other is set."""
        lr = OmegaConf.select(config, "actor_rollout_ref.actor.optim.lr", default=None)
        if not get_method(self.method).ascends or self.options.gradient.lr is not None or lr is None:
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
                "the configuration has no section 'saw'; add for example "
                "'+saw={method: saw_gdpo, objectives: {accuracy: {minimum: 0, maximum: 1}}}'"
            )
        if isinstance(section, DictConfig):
            section = OmegaConf.to_container(section, resolve=True)
        try:
            settings = cls.model_validate(section)
            return settings._with_actor_lr(config)
        except ValidationError as error:
            raise ConfigError(_readable(error)) from error


def _readable(error: ValidationError) -> str:
    """One line a fault: the key as one would write it in an override, what is wrong, the value."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in (NAME, *fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "there is no such setting"
        value = "" if fault["type"] in ("missing", "value_error") else f"; it is {fault['input']!r}"
        lines.append(f"{key}: {message}{value}")
    return "\n".join(lines)


def check_config(config: DictConfig) -> Settings | None:
    """Check a whole verl configuration, as far as it concerns SAW.

    Args:
        config (DictConfig): verl's configuration.

    Returns:
        Settings | None: the typed section, or None if the configuration does not ask for SAW's trainer.

    Raises:
        ConfigError: for anything that would fail later, or would silently mean something else.
    """
    mode = config.trainer.v1.trainer_mode
    estimator = config.algorithm.adv_estimator
    if (mode == NAME) != (estimator == NAME):
        raise ConfigError(
            f"trainer.v1.trainer_mode is {mode!r} and algorithm.adv_estimator {estimator!r}; "
            f"set both to {NAME!r}, or neither: the trainer hands the estimator the rewards of each objective"
        )
    if mode != NAME:
        return None
    settings = Settings.of(config)
    _check_rest(config, settings)
    _check_reward_function(config, settings)
    return settings


def _check_rest(config: DictConfig, settings: Settings) -> None:
    algorithm = config.algorithm
    wrong = []
    if not config.trainer.use_v1:
        wrong.append("trainer.use_v1 is False; SAW's trainer is one of verl's v1 trainers: set it to True")
    if config.critic.enable:
        wrong.append("critic.enable is True; the advantages are relative to a group and use no critic: set it to False")
    if not algorithm.get("norm_adv_by_std_in_grpo", True):
        wrong.append(
            "algorithm.norm_adv_by_std_in_grpo is False; the methods divide by the group's std: set it to True"
        )
    combines = get_method(settings.method).combines_rewards
    if algorithm.use_kl_in_reward and not combines and settings.kl_in_reward == "combined":
        wrong.append(
            f"algorithm.use_kl_in_reward is True, and saw.method {settings.method!r} never sums the rewards that the "
            "penalty would be taken from; use actor_rollout_ref.actor.use_kl_loss=True, or saw.kl_in_reward=grpo_only"
        )
    if settings.needs_gradients:
        actor = config.actor_rollout_ref.actor
        if actor.strategy != "fsdp2":
            wrong.append(
                f"actor_rollout_ref.actor.strategy is {actor.strategy!r}, and the objectives' policy gradients are "
                "taken apart under fsdp2 only: set it to fsdp2"
            )
        if (algorithm.get("rollout_correction") or {}).get("bypass_mode", False):
            wrong.append(
                "algorithm.rollout_correction.bypass_mode is True, and the objectives' policy gradients are computed "
                "along with the old log-probabilities, which it leaves out: set it to False"
            )
        wrong += _no_gradients_under(config)
    model = config.reward.reward_model
    if model.enable and not model.enable_resource_pool:
        wrong.append(
            "reward.reward_model.enable_resource_pool is False; "
            "a reward model must run beside the rollout: set it to True"
        )
    if wrong:
        raise ConfigError("\n".join(wrong))


def _no_gradients_under(config: DictConfig) -> list[str]:
    """What changes the update's gradient and not the objectives', which then would not be parts of it."""
    wrong = []
    correction = config.algorithm.get("rollout_correction") or {}
    for name, what in (("rollout_is", "weights the tokens"), ("rollout_rs", "masks tokens out")):
        if (value := correction.get(name)) is not None:
            wrong.append(
                f"algorithm.rollout_correction.{name} is {value!r}, which {what} after the objectives' policy "
                "gradients have been computed: set it to null"
            )
    key = "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype"
    precision = OmegaConf.select(config, key, default=None)
    if precision is not None and PrecisionType.is_fp16(precision):
        wrong.append(
            f"{key} is {precision!r}, which needs loss scaling, and the objectives' policy gradients know none: "
            "set it to bf16 or fp32"
        )
    return wrong


def ranges_at(config: DictConfig, settings: Settings, step: int) -> list[tuple[float, float]]:
    """Smallest and largest possible value of each objective at a training step.

    What the configuration states holds; the rest comes from the reward function.

    Args:
        config (DictConfig): verl's configuration.
        settings (Settings): its section ``saw``.
        step (int): verl's global step.

    Returns:
        list[tuple[float, float]]: a pair an objective; the largest is infinite where nobody states it, and the smallest
        is where it is the running minimum.

    Raises:
        ConfigError: if nobody states an objective's minimum.
    """
    function = _reward_function(config)
    declare = getattr(function, "bounds", None)
    declared = declare(step, **_reward_kwargs(config)) if declare else {}
    ranges = []
    for objective in settings.objectives:
        low, high = declared.get(objective.name, (None, math.inf))
        if objective.minimum == "running":
            low = -math.inf
        elif objective.minimum is not None:
            low = objective.minimum
        if low is None:
            raise ConfigError(
                f"saw.objectives.{objective.name}.minimum is not set, and the reward function declares no bounds of "
                "it; set it to the lowest value that the reward can take"
            )
        ranges.append((low, high if objective.maximum is None else objective.maximum))
    if get_method(settings.method).needs_maxima(settings.options):
        for objective, (low, high) in zip(settings.objectives, ranges, strict=True):
            if math.isinf(high) or math.isinf(low):
                raise ConfigError(
                    f"saw.options.informativeness is {settings.options.informativeness!r}, which needs the range of "
                    f"{objective.name!r}; set saw.objectives.{objective.name}.minimum and maximum"
                )
    return ranges


def _reward_function(config: DictConfig) -> Any:
    """The custom reward function as its author wrote it; None if there is none."""
    custom = config.reward.custom_reward_function
    return None if custom.path is None else load_extern_object(module_path=custom.path, object_name=custom.name)


def _reward_kwargs(config: DictConfig) -> dict[str, Any]:
    """What verl hands the reward function beside a sample."""
    kwargs = config.reward.custom_reward_function.get("reward_kwargs", {})
    plain: Any = OmegaConf.to_container(kwargs, resolve=True) if isinstance(kwargs, DictConfig) else kwargs
    return dict(plain)


def _check_reward_function(config: DictConfig, settings: Settings) -> None:
    """Compare the objectives with what the reward function returns, and see that all have a minimum.

    A reward function may say so itself, see :func:`saw.rewards.returns`. A plain one that does
    not is tried on the first training row, with the reference as the response. An asynchronous one is left alone, as
    it may cost money; the trainer checks its first rewards.
    """
    function, model = _reward_function(config), config.reward.reward_model
    if function is not None:
        if (check := getattr(function, "check", None)) is not None:
            try:
                check(**_reward_kwargs(config), **({"reward_router_address": "0:0"} if model.enable else {}))
            except ValueError as fault:
                key = "reward.custom_reward_function.reward_kwargs"
                raise ConfigError("\n".join(f"{key}.{line}" for line in str(fault).splitlines())) from None
        returned = getattr(function, "objectives", None)
        if getattr(function, "bounds", None) is not None:  # with these arguments, an objective may be off
            returned = function.bounds(0, **_reward_kwargs(config))
        if returned is None and not inspect.iscoroutinefunction(function) and not model.enable:
            returned = _try_on_first_row(function, config)
        if returned is not None:
            check_returned(settings, returned)
    ranges_at(config, settings, step=0)


def _try_on_first_row(function: Callable[..., Any], config: DictConfig) -> Mapping[str, Any] | None:
    """What a reward function returns for the first training row; None if there is no row to try or no dict."""
    files = config.data.train_files
    first = Path(files if isinstance(files, str) else files[0])
    if first.suffix != ".parquet" or not first.is_file():
        return None  # verl says what it makes of such a file
    row = next(pq.ParquetFile(first).iter_batches(batch_size=1)).to_pylist()[0]
    truth = row["reward_model"]["ground_truth"]
    try:
        result = function(
            data_source=row.get("data_source"),
            solution_str=str(truth),
            ground_truth=truth,
            extra_info=row.get("extra_info") or {},
            **_reward_kwargs(config),
        )
    except Exception as error:
        error.add_note(
            f"raised by the reward function on the first row of {first}, tried to see which objectives it returns; "
            "declare them with saw.rewards.returns, and it is not tried"
        )
        raise
    if not isinstance(result, Mapping):
        raise ConfigError(f"the reward function returns {type(result).__name__}; expected a dict with the objectives")
    return result


def check_returned(settings: Settings, returned: Any) -> None:
    """Check that a reward function returns every objective.

    Raises:
        ConfigError: naming the objectives that it does not return, and what it does.
    """
    absent = [name for name in settings.names if name not in returned]
    if absent:
        allowed = ", ".join(sorted(key for key in returned if key not in RESERVED_NAMES))
        raise ConfigError(
            f"saw.objectives has {', '.join(map(repr, absent))}, which the reward function does not return; "
            f"it returns {allowed or 'no objective'}"
        )
