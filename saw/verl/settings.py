"""The configuration section ``saw``, typed, and what it demands of the rest of verl's configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.utils.import_utils import load_extern_object
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import FSDPActorConfig

from saw.method.options import Options
from saw.method.registry import check_combination, get_method
from saw.verl import NAME
from saw.verl.reward_values import reward_value

#: The scalar in a reward function's dict, which is no objective: verl reads ``score`` and adds ``reward``.
SCALARS = frozenset({"score", "reward"})
#: The key by which the reward manager says whether the reward function failed: 1 or 0.
FAILED = "saw_failed"
#: Keys of that dict that are no objectives.
RESERVED_NAMES = ("score", "reward", FAILED)
#: verl's column for a number of rollouts that differs between prompts.
ROLLOUTS = "__rollout_n__"
#: Where the reward function's arguments are set.
KWARGS = "reward.custom_reward_function.reward_kwargs"


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, the value and what is allowed."""


class ObjectiveSettings(BaseModel):
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
    def _range(self) -> ObjectiveSettings:
        if isinstance(self.minimum, float) and self.maximum is not None and self.maximum <= self.minimum:
            raise ValueError(f"maximum is {self.maximum:g}; expected a number above the minimum {self.minimum:g}")
        return self


class Settings(BaseModel):
    """The section ``saw`` of the configuration.

    Attributes:
        method (str): a name in :data:`saw.METHODS`.
        objectives (tuple[ObjectiveSettings, ...]): written as a mapping from name to the rest, or as a list with names.
        options (Options): see :class:`saw.Options`.
        kl_in_reward (Literal["combined", "grpo_only"]): who feels verl's ``algorithm.use_kl_in_reward``. Combined: the
            penalty is taken off the combined reward; for the methods that have one. grpo_only: as in the released
            code, where plain ``grpo`` feels it and the other methods do not; with its profile only.
        max_missing (float): largest share of a step's samples that may lack a reward; above it the training stops, with
            a checkpoint of the step before. A sample whose reward function raised, or that was lost on the way, has
            none. A step without any reward stops it whatever this is.
        poll_interval (float): seconds between two looks for finished rollouts; verl's own is 2.0, which adds a
            second to a step on average.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    objectives: tuple[ObjectiveSettings, ...] = Field(min_length=1)
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
    def _unique(cls, objectives: tuple[ObjectiveSettings, ...]) -> tuple[ObjectiveSettings, ...]:
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
        return self.options.gradient.clip if self._ascends else None

    @property
    def needs_gradients(self) -> bool:
        """Whether the actor's workers must compute a policy gradient of each objective."""
        return "gradients" in get_method(self.method).needs(self.options)

    @property
    def _ascends(self) -> bool:
        """Whether the weights climb by mirror ascent, which has a learning rate."""
        return "learning_rate" in get_method(self.method).needs(self.options)

    def _with_actor_lr(self, config: DictConfig) -> Settings:
        """The mirror ascent's learning rate is the actor's where no other is set."""
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
            raise ConfigError(readable(error, NAME, cls)) from error


def readable(error: ValidationError, prefix: str, model: type[BaseModel]) -> str:
    """One line a fault: the key as one would write it in an override, what is wrong, the value, what is allowed.

    Args:
        error (ValidationError): what pydantic found.
        prefix (str): where the section stands in the configuration.
        model (type[BaseModel]): the section's type.
    """
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in (prefix, *fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = f"there is no such setting; allowed are {', '.join(_fields(model, fault['loc'][:-1]))}"
        value = "" if fault["type"] in ("missing", "value_error") else f"; it is {fault['input']!r}"
        lines.append(f"{key}: {message}{value}")
    return "\n".join(lines)


def _fields(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """The fields of the model that stands at a path into another."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((kind for kind in inner if inspect.isclass(kind) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)


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
    _check_rollouts(config, settings)
    returned = _check_reward_function(config, settings)
    _check_group_filter(config, settings, returned)
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
    combines = get_method(settings.method).aggregation.takes_penalty
    if algorithm.use_kl_in_reward and not combines and settings.kl_in_reward == "combined":
        wrong.append(
            f"algorithm.use_kl_in_reward is True, and saw.method {settings.method!r} never sums the rewards that the "
            "penalty would be taken from; use actor_rollout_ref.actor.use_kl_loss=True, or saw.kl_in_reward=grpo_only"
        )
    wrong += _engine_faults(config)
    if settings.needs_gradients:
        wrong += _gradient_faults(config)
    wrong += _reward_manager_faults(config)
    model = config.reward.reward_model
    if model.enable and not model.enable_resource_pool:
        wrong.append(
            "reward.reward_model.enable_resource_pool is False; "
            "a reward model must run beside the rollout: set it to True"
        )
    if model.enable and config.reward.custom_reward_function.path is None:
        wrong.append(
            "reward.custom_reward_function.path is not set, and reward.reward_model.enable is True: verl then takes "
            "the model's own scalar for the reward; set it to a reward function that asks the model, and returns a "
            "dict with the objectives"
        )
    if wrong:
        raise ConfigError("\n".join(wrong))


def _engine_faults(config: DictConfig) -> list[str]:
    """A strategy that belongs to another engine: verl asks the one here, and the other there."""
    actor = config.actor_rollout_ref.actor
    kind = get_class(actor["_target_"])
    own = getattr(kind, "strategy", None)
    if issubclass(kind, FSDPActorConfig) or actor.strategy == own:
        return []
    return [
        f"actor_rollout_ref.actor.strategy is {actor.strategy!r}, and model_engine {config.get('model_engine')!r} "
        f"(a {kind.__name__}) has the strategy {own!r} only: set it to that, or take another model_engine"
    ]


def _gradient_faults(config: DictConfig) -> list[str]:
    """What the objectives' policy gradients, :mod:`saw.verl.gradients`, are not made for."""
    wrong = []
    actor = config.actor_rollout_ref.actor
    if not issubclass(get_class(actor["_target_"]), FSDPActorConfig):
        wrong.append(
            f"model_engine is {config.get('model_engine')!r}, and the objectives' policy gradients are taken apart "
            "under FSDP2 only: set it to dp, and actor_rollout_ref.actor.strategy to fsdp2"
        )
    else:
        if actor.strategy != "fsdp2":
            wrong.append(
                f"actor_rollout_ref.actor.strategy is {actor.strategy!r}, and the objectives' policy gradients are "
                "taken apart under fsdp2 only: set it to fsdp2"
            )
        precision = (actor.fsdp_config.get("mixed_precision") or {}).get("param_dtype", "bf16")
        if PrecisionType.is_fp16(precision):
            wrong.append(
                f"actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype is {precision!r}, which trains with "
                "loss scaling, and the objectives' policy gradients know none: set it to bf16 or fp32"
            )
    correction = config.algorithm.get("rollout_correction") or {}
    if correction.get("bypass_mode", False):
        wrong.append(
            "algorithm.rollout_correction.bypass_mode is True, and the objectives' policy gradients are computed "
            "along with the old log-probabilities, which it leaves out: set it to False"
        )
    for key, does in (("rollout_is", "weighs the tokens"), ("rollout_rs", "rejects samples or tokens")):
        if correction.get(key) is not None:
            wrong.append(
                f"algorithm.rollout_correction.{key} is {correction[key]!r}, which {does} after the objectives' policy "
                "gradients are computed, so that these would be those of another loss: set it to null"
            )
    return wrong


def _reward_manager_faults(config: DictConfig) -> list[str]:
    """Another reward manager than ours, or one derived from it: what it makes of a reward reaches no advantage."""
    from saw.verl.reward_manager import MultiRewardManager

    section = config.reward.reward_manager
    try:
        kind = resolve_reward_manager_cls(config)
    except (ValueError, AssertionError, ImportError, AttributeError, FileNotFoundError) as error:
        return [
            f"reward.reward_manager.name is {section.name!r} and its source {section.source!r}: {error}; "
            f"set the name to {NAME!r}, and the source to 'register'"
        ]
    if issubclass(inspect.unwrap(kind), MultiRewardManager):  # verl's registry holds a proxy of it
        return []
    return [
        f"reward.reward_manager.name is {section.name!r} (a {kind.__name__}), which makes one scalar of a reward, and "
        f"that never enters an advantage; set it to {NAME!r}, or with source=importlib to a class derived from "
        f"{MultiRewardManager.__module__}.{MultiRewardManager.__name__}"
    ]


def check_group_size(config: DictConfig, settings: Settings) -> None:
    """Refuse one rollout a prompt: nothing can be learned from it, as a sample has nothing to be compared with.

    Raises:
        ConfigError: unless the profile is ``released``, in which a sample alone in its group has its own reward.
    """
    number = config.actor_rollout_ref.rollout.n
    if number < 2 and settings.options.numerics.lone_sample == "zero":
        raise ConfigError(
            f"actor_rollout_ref.rollout.n is {number}, and an advantage compares the samples of one prompt: all would "
            f"be 0; set it to at least 2, or give the training rows a column {ROLLOUTS!r} with a number for each prompt"
        )


def _check_rollouts(config: DictConfig, settings: Settings) -> None:
    """Check the number of rollouts, where the training files can say that it does not differ between prompts."""
    if config.actor_rollout_ref.rollout.n > 1:
        return
    agent = config.actor_rollout_ref.rollout.get("agent") or {}
    if (config.data.get("custom_cls") or {}).get("path") or agent.get("agent_loop_manager_class"):
        return  # it may set the number; the trainer looks at the first samples
    files = config.data.train_files
    if not any(_may_ask_for_several(name) for name in ([files] if isinstance(files, str) else files)):
        check_group_size(config, settings)


def _may_ask_for_several(file: str) -> bool:
    """Whether some row of a training file may have more rollouts than the configuration says."""
    path = Path(file).expanduser()
    if "://" in file:
        return True  # the trainer looks at the first samples
    if not path.is_file():
        return False
    if path.suffix != ".parquet":
        with path.open() as lines:
            return any(ROLLOUTS in line for line in lines)
    parquet = pq.ParquetFile(path)
    if ROLLOUTS not in parquet.schema_arrow.names:
        return False
    kind = parquet.schema_arrow.field(ROLLOUTS).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise ConfigError(f"data.train_files: {path} has a column {ROLLOUTS!r} of type {kind}; expected whole numbers")
    return (pc.max(parquet.read(columns=[ROLLOUTS])[ROLLOUTS]).as_py() or 0) > 1


def _check_group_filter(config: DictConfig, settings: Settings, returned: Iterable[str] | None) -> None:
    """Check the reward by which verl filters groups.

    Args:
        config (DictConfig): verl's configuration.
        settings (Settings): its section ``saw``.
        returned (Iterable[str] | None): the keys that the reward function returns; None if they are not known.
    """
    section = config.algorithm.get("filter_groups") or {}
    if not section.get("enable", False):
        return
    metric = section.get("metric")
    allowed = list(dict.fromkeys(["reward", "score", *settings.names, *(returned or ())]))
    allowed = [key for key in allowed if key != FAILED]
    if not metric or (returned is not None and metric not in allowed):
        raise ConfigError(
            f"algorithm.filter_groups.metric is {metric!r}, and algorithm.filter_groups.enable True; "
            f"set it to one of {', '.join(allowed)}"
        )


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
        ConfigError: if nobody states an objective's minimum, or a minimum is above the maximum.
    """
    function = _reward_function(config)
    declared = _declared_bounds(function, config, step)
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
        high = high if objective.maximum is None else objective.maximum
        if not low <= high or (math.isinf(low) and objective.minimum != "running"):
            raise ConfigError(
                f"the rewards of {objective.name!r} range from {low:g} to {high:g} at step {step}; expected a finite "
                f"minimum that is at most the maximum: see saw.objectives.{objective.name}.minimum and maximum, and "
                f"the bounds that the reward function declares with {KWARGS}"
            )
        ranges.append((low, high))
    if "maxima" in get_method(settings.method).needs(settings.options):
        for objective, (low, high) in zip(settings.objectives, ranges, strict=True):
            if math.isinf(high) or math.isinf(low) or high == low:
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


def _declared_bounds(function: Any, config: DictConfig, step: int) -> dict[str, tuple[float, float]]:
    """The ranges that a reward function declares; empty if it declares none."""
    declare = getattr(function, "bounds", None)
    if declare is None:
        return {}
    kwargs = _reward_kwargs(config)
    _check_arguments(declare, {"step": step}, kwargs, "what declares the reward function's bounds")
    bounds = declare(step, **kwargs)
    try:
        return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(
            f"the reward function's bounds are {bounds!r}; expected a pair of numbers for each objective"
        ) from None


def _check_arguments(
    function: Callable[..., Any], own: Mapping[str, Any], configured: Mapping[str, Any], what: str
) -> None:
    """See that a function takes the arguments that it will be called with.

    Args:
        function (Callable): the function.
        own (Mapping): what it gets in any case.
        configured (Mapping): what the configuration adds.
        what (str): a name for it.

    Raises:
        ConfigError: naming the setting that it does not take, or that it lacks.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a function that is not written in Python
    try:
        signature.bind(**{**own, **configured})
    except TypeError as error:
        unknown = [
            f"{KWARGS}.{name} is {configured[name]!r}" for name in configured if name not in signature.parameters
        ]
        raise ConfigError(
            f"{', '.join(unknown) or f'{KWARGS} is {dict(configured)!r}'}, and {what} cannot be called like that: "
            f"{error}; it takes {signature}, and gets {', '.join({**own, **configured})}"
        ) from None


def _check_reward_function(config: DictConfig, settings: Settings) -> Iterable[str] | None:
    """Compare the objectives with what the reward function returns, and see that all have a minimum.

    A reward function may say so itself, see :func:`saw.rewards.returns`. A plain one that does
    not is tried on the first training row, with the reference as the response. An asynchronous one is left alone, as
    it may cost money; the trainer checks its first rewards.

    Returns:
        Iterable[str] | None: what it returns, if that is known.
    """
    function, model = _reward_function(config), config.reward.reward_model
    returned = tried = None
    if function is not None:
        kwargs = _reward_kwargs(config)
        router = {"reward_router_address": "0:0"} if model.enable else {}
        given = _sample_arguments({}) | ({**router, "reward_model_tokenizer": None} if router else {})
        _check_arguments(function, given, kwargs, "the reward function")
        if (check := getattr(function, "check", None)) is not None:
            _check_arguments(check, router, kwargs, "the reward function's check")
            try:
                check(**kwargs, **router)
            except ValueError as fault:
                raise ConfigError("\n".join(f"{KWARGS}.{line}" for line in str(fault).splitlines())) from None
        returned = getattr(function, "objectives", None)
        if getattr(function, "bounds", None) is not None:  # with these arguments, an objective may be off
            returned = _declared_bounds(function, config, step=0)
        if returned is None and not inspect.iscoroutinefunction(function) and not model.enable:
            returned = tried = _try_on_first_row(function, config)
        if returned is not None:
            check_returned(settings, returned)
    ranges = ranges_at(config, settings, step=0)
    if tried is not None:
        _check_first_rewards(settings, tried, ranges)
    return returned


def _sample_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """What verl calls a reward function with, for a row whose reference is the response."""
    truth = (row.get("reward_model") or {}).get("ground_truth")
    return {
        "data_source": row.get("data_source"),
        "solution_str": str(truth),
        "ground_truth": truth,
        # what the reward managers, verl's and ours, put there
        "extra_info": {
            **(row.get("extra_info") or {}),
            "num_turns": 2,
            "rollout_reward_scores": {},
            "global_step": 0,
        },
    }


def _first_row(config: DictConfig) -> tuple[Path, dict[str, Any]] | None:
    """The first training row and its file; None if there is none to read."""
    files = config.data.train_files
    first = Path(files if isinstance(files, str) else files[0])
    if first.suffix != ".parquet" or not first.is_file():
        return None  # verl says what it makes of such a file
    for batch in pq.ParquetFile(first).iter_batches(batch_size=1):
        return first, batch.to_pylist()[0]
    raise ConfigError(f"data.train_files has {str(first)!r}, which has no rows; expected at least one")


def _try_on_first_row(function: Callable[..., Any], config: DictConfig) -> Mapping[str, Any] | None:
    """What a reward function returns for the first training row; None if there is no row to try or no dict."""
    found = _first_row(config)
    if found is None:
        return None
    first, row = found
    try:
        result = function(**(_sample_arguments(row) | _reward_kwargs(config)))
    except Exception as error:
        error.add_note(
            f"raised by the reward function on the first row of {first}, tried to see which objectives it returns; "
            "declare them with saw.rewards.returns, and it is not tried"
        )
        raise
    if not isinstance(result, Mapping):
        raise ConfigError(f"the reward function returns {type(result).__name__}; expected a dict with the objectives")
    return result


def _check_first_rewards(settings: Settings, rewards: Mapping[str, Any], ranges: Iterable[tuple[float, float]]) -> None:
    """Check the rewards of the first row as the training would check them, hours later.

    Raises:
        ConfigError: for a reward that is no number, infinite, or below its minimum.
    """
    for name, (low, _) in zip(settings.names, ranges, strict=True):
        tried = f"the reward {name!r} of the first training row, with its reference as the response"
        try:
            value = reward_value(rewards[name])
        except TypeError as error:
            raise ConfigError(f"{tried}: {error}") from None
        if math.isinf(value):
            raise ConfigError(f"{tried}, is {value}; expected a finite number, or NaN where it is missing")
        if value < low:
            raise ConfigError(f"{tried}, is {value:g}, below its minimum {low:g}; see saw.objectives.{name}.minimum")


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
