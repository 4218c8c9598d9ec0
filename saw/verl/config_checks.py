"""Checks, before Ray starts, what SAW requires of the rest of verl's configuration."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import verl
from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf
from verl.plugin.platform import get_platform
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.trainer.ppo.utils import need_reference_policy
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import FSDPActorConfig

from saw.machine import environment, requirements
from saw.machine.cluster import running
from saw.method.registry import get_method
from saw.rewards import JUDGE
from saw.verl import version
from saw.verl.config import ConfigError, Settings, check_returned
from saw.verl.names import FAILED, KWARGS, MODES, NAME, ROLLOUTS, SEEDED, SINGLE_TURN
from saw.verl.reward_ranges import RewardRanges, check_arguments, exact_minima
from saw.verl.reward_values import reward_value

logger = logging.getLogger(__name__)

#: Seconds between two polls of verl's replay buffer.
POLL_INTERVAL = 2.0
#: The data's column that may name another agent loop for each row.
AGENT = "agent_name"


def check_config(config: DictConfig) -> Settings | None:
    """Check a whole verl configuration, as far as it concerns SAW.

    Args:
        config (DictConfig): verl's configuration.

    Returns:
        Settings | None: the typed section, or None if the configuration does not ask for SAW's trainer.

    Raises:
        ConfigError: for anything that would fail later or silently do something else.
    """
    mode = config.trainer.v1.trainer_mode
    estimator = config.algorithm.adv_estimator
    if (mode in MODES) != (estimator == NAME):
        asynchronous = " or ".join(name for name in MODES if name != NAME)
        raise ConfigError(
            f"trainer.v1.trainer_mode is {mode!r} and algorithm.adv_estimator {estimator!r}; "
            f"set both to {NAME!r}, or neither: the trainer passes each objective's rewards to the estimator. An "
            f"asynchronous trainer_mode is {asynchronous}"
        )
    if mode not in MODES:
        return None
    settings = Settings.of(config)
    _check_rest(config, settings)
    _check_rollouts(config, settings)
    returned = _check_reward_function(config, settings)
    _check_judge_key(config)
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
    size = config.data.train_batch_size
    if not isinstance(size, int) or size < 1:
        wrong.append(f"data.train_batch_size is {size!r}; set it to a number of prompts per step, at least 1")
    combines = get_method(settings.method).aggregation.takes_penalty
    if algorithm.use_kl_in_reward and not combines and settings.kl_in_reward == "combined":
        wrong.append(
            f"algorithm.use_kl_in_reward is True, but saw.method {settings.method!r} has no summed reward to subtract "
            "the penalty from; use actor_rollout_ref.actor.use_kl_loss=True, or saw.kl_in_reward=grpo_only"
        )
    wrong += _engine_faults(config)
    wrong += _trl_faults(config)
    if settings.needs_gradients:
        wrong += _gradient_faults(config)
    wrong += _mode_faults(config, settings)
    wrong += _turn_faults(config, settings)
    wrong += _seeded_faults(config)
    wrong += _reward_manager_faults(config)
    model = config.reward.reward_model
    if model.enable and not model.enable_resource_pool:
        wrong.append(
            "reward.reward_model.enable_resource_pool is False; "
            "a reward model must run beside the rollout: set it to True"
        )
    if model.enable and config.reward.custom_reward_function.path is None:
        wrong.append(
            "reward.custom_reward_function.path is not set, but reward.reward_model.enable is True: verl then uses "
            "the model's scalar as the reward; set it to a reward function that calls the model and returns a dict "
            "with the objectives"
        )
    if wrong:
        raise ConfigError("\n".join(wrong))


def _engine_faults(config: DictConfig) -> list[str]:
    """A strategy of another engine than ``model_engine``: some parts of verl read one setting, some the other."""
    actor = config.actor_rollout_ref.actor
    kind = get_class(actor["_target_"])
    own = getattr(kind, "strategy", None)
    if issubclass(kind, FSDPActorConfig) or actor.strategy == own:
        return []
    return [
        f"actor_rollout_ref.actor.strategy is {actor.strategy!r}, and model_engine {config.get('model_engine')!r} "
        f"(a {kind.__name__}) has only the strategy {own!r}: set it to that, or use another model_engine"
    ]


def _trl_faults(config: DictConfig) -> list[str]:
    """An installed TRL with which verl's FSDP engine would fail, minutes later, when it loads a model."""
    if not issubclass(get_class(config.actor_rollout_ref.actor["_target_"]), FSDPActorConfig):
        return []
    problem = requirements.trl_problem()
    if problem is None:
        return []
    return [f"{problem}; {'; '.join(requirements.repairs([problem], environment.pip_install()))}"]


def check_micro_batches(config: DictConfig) -> None:
    """Check what verl's workers would assert about micro-batches after Ray has started.

    Raises:
        ConfigError: naming the keys that contradict each other, or the key that is not set.
    """
    parts = config.actor_rollout_ref
    actor, rollout, ref = parts.actor, parts.rollout, parts.ref
    wrong = []
    if actor.use_dynamic_bsz != rollout.log_prob_use_dynamic_bsz:
        wrong.append(
            f"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz is {rollout.log_prob_use_dynamic_bsz} and "
            f"actor_rollout_ref.actor.use_dynamic_bsz {actor.use_dynamic_bsz}, but one worker does both; set both to "
            "True, or both to False"
        )
    needed = {
        "actor": ("ppo_max_token_len_per_gpu" if actor.use_dynamic_bsz else "ppo_micro_batch_size_per_gpu"),
        "rollout": _log_prob_limit(rollout),
    }
    if need_reference_policy(config):
        needed["ref"] = _log_prob_limit(ref)
    for part, key in needed.items():
        if parts[part].get(key) is None:
            dynamic = "use_dynamic_bsz" if part == "actor" else "log_prob_use_dynamic_bsz"
            wrong.append(
                f"actor_rollout_ref.{part}.{key} is null, and actor_rollout_ref.{part}.{dynamic} "
                f"{parts[part][dynamic]}; set it to a number"
            )
    if wrong:
        raise ConfigError("\n".join(wrong))


def _log_prob_limit(section: DictConfig) -> str:
    dynamic = section.log_prob_use_dynamic_bsz
    return "log_prob_max_token_len_per_gpu" if dynamic else "log_prob_micro_batch_size_per_gpu"


def _gradient_faults(config: DictConfig) -> list[str]:
    """Settings that the objectives' policy gradients (:mod:`saw.verl.gradients`) do not support."""
    wrong = []
    actor = config.actor_rollout_ref.actor
    if not issubclass(get_class(actor["_target_"]), FSDPActorConfig):
        wrong.append(
            f"model_engine is {config.get('model_engine')!r}, but the objectives' policy gradients are computed only "
            "under FSDP2: set it to dp, and actor_rollout_ref.actor.strategy to fsdp2"
        )
    else:
        if actor.strategy != "fsdp2":
            wrong.append(
                f"actor_rollout_ref.actor.strategy is {actor.strategy!r}, but the objectives' policy gradients are "
                "computed only under fsdp2: set it to fsdp2"
            )
        precision = (actor.fsdp_config.get("mixed_precision") or {}).get("param_dtype", "bf16")
        if PrecisionType.is_fp16(precision):
            wrong.append(
                f"actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype is {precision!r}, which trains with "
                "loss scaling; the objectives' policy gradients do not support it: set it to bf16 or fp32"
            )
    correction = config.algorithm.get("rollout_correction") or {}
    if correction.get("bypass_mode", False):
        wrong.append(
            "algorithm.rollout_correction.bypass_mode is True, but the objectives' policy gradients are computed "
            "together with the old log-probabilities, which it skips: set it to False"
        )
    for key, does in (("rollout_is", "weights the tokens"), ("rollout_rs", "rejects samples or tokens")):
        if correction.get(key) is not None:
            wrong.append(
                f"algorithm.rollout_correction.{key} is {correction[key]!r}, which {does} after the objectives' policy "
                "gradients are computed, so they would belong to another loss: set it to null"
            )
    return wrong


def _seeded_faults(config: DictConfig) -> list[str]:
    """What the agent loop with a seed for each request needs."""
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop != SEEDED:
        return []
    wrong = []
    loop = f"actor_rollout_ref.rollout.agent.default_agent_loop is {SEEDED!r}"
    if not isinstance(config.data.seed, int):
        wrong.append(f"data.seed is {config.data.seed!r}, and {loop}, which computes its seeds from it: set a number")
    if config.trainer.device == "cpu" and rollout.enable_chunked_prefill:
        wrong.append(
            f"actor_rollout_ref.rollout.enable_chunked_prefill is True, and {loop}: on a CPU, vLLM ends if it splits "
            "the prompt of a seeded request; set it to False"
        )
    return wrong


def _turn_faults(config: DictConfig, settings: Settings) -> list[str]:
    """Objectives of a turn that no response can have."""
    if not settings.names_turns:
        return []
    rollout = config.actor_rollout_ref.rollout
    key, value, most = "multi_turn.max_assistant_turns", *[rollout.multi_turn.max_assistant_turns] * 2
    loop = rollout.agent.default_agent_loop
    if loop in (SINGLE_TURN, SEEDED) and not _may_have_column(config.data.train_files, AGENT):
        key, value, most = "agent.default_agent_loop", loop, 1
    return [
        f"saw.objectives.{objective.name}.turn is {objective.turn}, but actor_rollout_ref.rollout.{key} is {value!r}: "
        f"the model has at most {most} turns. Set turn to at most that, or leave it out; an agent loop of several "
        "turns is default_agent_loop=tool_agent"
        for objective in settings.objectives
        if objective.turn is not None and most is not None and objective.turn > most
    ]


def _may_have_column(files: Any, name: str) -> bool:
    """Whether a training file has a column; one that can't be looked at here may have it."""
    for file in [files] if isinstance(files, str) else files:
        path = Path(file).expanduser()
        if path.suffix != ".parquet" or not path.is_file() or name in pq.ParquetFile(path).schema_arrow.names:
            return True
    return False


def _mode_faults(config: DictConfig, settings: Settings) -> list[str]:
    """Settings that an asynchronous trainer does not support, or that verl would refuse after Ray has started."""
    name = config.trainer.v1.trainer_mode
    mode = MODES[name]
    wrong = []
    if settings.needs_gradients and mode != "sync":
        wrong.append(
            f"trainer.v1.trainer_mode is {name!r}, but saw.method {settings.method!r} (saw.options.informativeness "
            f"{settings.options.informativeness!r}) compares policy gradients on the samples of another policy, which "
            f"would need importance weights: set trainer_mode to {NAME!r}, or use another method"
        )
    mini_batches = config.trainer.v1[mode].get("parameter_sync_step", 1)
    if mode == "separate_async" and not version.SEPARATE_ASYNC:
        wrong.append(
            f"trainer.v1.trainer_mode is {name!r}, which needs verl {version.VERSIONS[-1]}, but verl "
            f"{verl.__version__} is installed, whose separate_async works differently: install the former, or set "
            f"trainer_mode to {NAME!r}"
        )
    elif mode == "separate_async":
        wrong += _separate_faults(config, settings, mini_batches)
    elif mini_batches != 1:
        wrong.append(
            f"trainer.v1.{mode}.parameter_sync_step is {mini_batches}, but the rollout sleeps from a step's first "
            "mini-batch to its end, so the trainer would wait forever for the next: leave it out"
        )
    return wrong


def _separate_faults(config: DictConfig, settings: Settings, mini_batches: int) -> list[str]:
    section = config.trainer.v1.separate_async
    parts = config.actor_rollout_ref
    wrong = []
    if config.data.train_batch_size != mini_batches * parts.actor.ppo_mini_batch_size:
        wrong.append(
            f"data.train_batch_size is {config.data.train_batch_size}; expected "
            f"trainer.v1.separate_async.parameter_sync_step {mini_batches} x "
            f"actor_rollout_ref.actor.ppo_mini_batch_size {parts.actor.ppo_mini_batch_size}"
        )
    wrong += _mini_batch_faults(config)
    for key in ("nnodes", "n_gpus_per_node"):
        if parts.rollout[key] < 1:
            wrong.append(
                f"actor_rollout_ref.rollout.{key} is {parts.rollout[key]}; expected at least 1: the rollout has "
                "its own GPUs"
            )
    engine, needed = parts.rollout.checkpoint_engine.backend, weight_engine()
    if engine == "naive" or needed not in (None, engine):
        wrong.append(
            f"actor_rollout_ref.rollout.checkpoint_engine.backend is {engine!r}, with which no weights reach a "
            f"separate rollout here; set it to {needed or 'nccl, or another of verl'}"
        )
    if not parts.get("hybrid_engine", True):
        wrong.append(
            "actor_rollout_ref.hybrid_engine is False, with which verl 0.9.1 fails after starting everything (it "
            "passes flush to a logger, a TypeError): set it to True"
        )
    switch = section.hybrid_rollout
    if switch.enable_switch and switch.adaptive_switch_threshold and settings.poll_interval != POLL_INTERVAL:
        wrong.append(
            f"saw.poll_interval is {settings.poll_interval:g}, and trainer.v1.separate_async.hybrid_rollout."
            "adaptive_switch_threshold is True: verl treats a step that waited longer than this interval as idle, and "
            f"would adapt its threshold to other waits; set saw.poll_interval to {POLL_INTERVAL:g}, verl's own"
        )
    return wrong


def _mini_batch_faults(config: DictConfig) -> list[str]:
    """Micro-batches that do not fit into a mini-batch, which here is all that the workers get at a time."""
    parts = config.actor_rollout_ref
    samples = parts.actor.ppo_mini_batch_size * parts.rollout.n
    sizes = {
        "actor.ppo_micro_batch_size_per_gpu": parts.actor.use_dynamic_bsz,
        "rollout.log_prob_micro_batch_size_per_gpu": parts.rollout.log_prob_use_dynamic_bsz,
    }
    if need_reference_policy(config):
        sizes["ref.log_prob_micro_batch_size_per_gpu"] = parts.ref.log_prob_use_dynamic_bsz
    wrong = []
    for key, dynamic in sizes.items():
        size = OmegaConf.select(parts, key)
        if size and not dynamic and samples % size:
            wrong.append(
                f"actor_rollout_ref.{key} is {size}; expected a divisor of the {samples} samples of a mini-batch "
                f"(actor.ppo_mini_batch_size {parts.actor.ppo_mini_batch_size} x rollout.n {parts.rollout.n})"
            )
    return wrong


def weight_engine() -> str | None:
    """The only checkpoint engine that works on this platform; None if verl has several."""
    return "cpu" if get_platform().device_name == "cpu" else None


def _reward_manager_faults(config: DictConfig) -> list[str]:
    """A reward manager that is neither ours nor derived from it: no advantage would use its rewards."""
    from saw.verl.reward_manager import MultiRewardManager

    section = config.reward.reward_manager
    try:
        kind = resolve_reward_manager_cls(config)
    except (ValueError, AssertionError, ImportError, AttributeError, FileNotFoundError) as error:
        return [
            f"reward.reward_manager.name is {section.name!r} and its source {section.source!r}: {error}; "
            f"set the name to {NAME!r}, and the source to 'register'"
        ]
    # verl's registry holds a proxy of ours. Since Python 3.11.9 and 3.12.3, inspect.unwrap does not look into it.
    if issubclass(getattr(kind, "__wrapped__", kind), MultiRewardManager):
        return []
    return [
        f"reward.reward_manager.name is {section.name!r} (a {kind.__name__}), which reduces the rewards to a scalar, "
        f"which no advantage uses; set it to {NAME!r}, or with source=importlib to a class derived from "
        f"{MultiRewardManager.__module__}.{MultiRewardManager.__name__}"
    ]


def check_group_size(config: DictConfig, settings: Settings) -> None:
    """Refuse one rollout per prompt: with nothing to compare a sample to, nothing is learned.

    Raises:
        ConfigError: unless the profile gives a group of one its reward, as ``released`` and ``verl`` do.
    """
    number = config.actor_rollout_ref.rollout.n
    if number < 2 and settings.options.numerics.lone_sample == "zero":
        raise ConfigError(
            f"actor_rollout_ref.rollout.n is {number}, but an advantage compares the samples of one prompt: all would "
            f"be 0; set it to at least 2, or give the training rows a column {ROLLOUTS!r} with a number per prompt"
        )


def _check_rollouts(config: DictConfig, settings: Settings) -> None:
    """Check the number of rollouts, if the training files show that it is the same for all prompts."""
    number = config.actor_rollout_ref.rollout.n
    if not isinstance(number, int):
        raise ConfigError(f"actor_rollout_ref.rollout.n is {number!r}; expected the number of samples per prompt")
    if number > 1:
        return
    agent = config.actor_rollout_ref.rollout.get("agent") or {}
    if (config.data.get("custom_cls") or {}).get("path") or agent.get("agent_loop_manager_class"):
        return  # it may set the number; the trainer looks at the first samples
    if not any(_may_ask_for_several(name) for name in _training_files(config)):
        check_group_size(config, settings)


def _training_files(config: DictConfig) -> list[str]:
    """The names of the training files; anything else is left to the check of the data (:mod:`saw.runs.inputs`)."""
    files = config.data.train_files
    names = [files] if isinstance(files, str) else list(files) if isinstance(files, ListConfig) else []
    return [name for name in names if isinstance(name, str)]


def _may_ask_for_several(file: str) -> bool:
    """Whether some row of a training file may have more rollouts than the configuration sets."""
    path = Path(file).expanduser()
    if "://" in file:
        return True  # the trainer looks at the first samples
    if not path.is_file():
        return False
    if path.suffix != ".parquet":
        with path.open(errors="replace") as lines:
            return any(ROLLOUTS in line for line in lines)
    try:
        parquet = pq.ParquetFile(path)
    except (OSError, pa.ArrowException):
        return True  # reported where the data is checked
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
    scalar = ["reward", "score"] if version.FILTER_KNOWS_REWARD else ["score"]
    allowed = list(dict.fromkeys([*scalar, *settings.names, *(returned or ())]))
    allowed = [key for key in allowed if key != FAILED]
    unknown = metric not in allowed and (returned is not None or metric == "reward")
    if not metric or unknown:
        raise ConfigError(
            f"algorithm.filter_groups.metric is {metric!r}, and algorithm.filter_groups.enable is True; "
            f"set it to one of {', '.join(allowed)}"
        )


def _check_reward_function(config: DictConfig, settings: Settings) -> Iterable[str] | None:
    """Compare the objectives with what the reward function returns, and check that all have a minimum.

    A reward function can declare its objectives (:func:`saw.rewards.returns`). A plain one that does not is tried on
    the first training row, with the reference as the response. An async one is not called, because that may cost
    money; the trainer checks its first rewards.

    Returns:
        Iterable[str] | None: the keys that it returns, if known.
    """
    ranges, model = RewardRanges.of(config, settings), config.reward.reward_model
    function, kwargs = ranges.function, ranges.kwargs
    returned = tried = None
    if function is not None:
        router = {"reward_router_address": "0:0"} if model.enable else {}
        given = _sample_arguments({}) | ({**router, "reward_model_tokenizer": None} if router else {})
        check_arguments(function, given, kwargs, "the reward function")
        if (check := getattr(function, "check", None)) is not None:
            check_arguments(check, router, kwargs, "the reward function's check")
            try:
                check(**kwargs, **router)
            except ValueError as fault:
                raise ConfigError("\n".join(f"{KWARGS}.{line}" for line in str(fault).splitlines())) from None
        returned = getattr(function, "objectives", None)
        if getattr(function, "bounds", None) is not None:  # these arguments may switch an objective off
            returned = ranges.declared(step=0)
        if returned is None and not inspect.iscoroutinefunction(function) and not model.enable:
            returned = tried = _try_on_first_row(function, kwargs, config)
        if returned is not None:
            check_returned(settings, returned)
    at_start = ranges.at(step=0)
    if tried is not None:
        _check_first_rewards(settings, tried, at_start)
    return returned


def _check_judge_key(config: DictConfig) -> None:
    """Check that a judge's key is set here, unless the nodes of a running Ray cluster may have it.

    Raises:
        ConfigError: if it is not set here and the reward workers run here.
    """
    variable = OmegaConf.select(config, f"{JUDGE}.api_key_env")
    if not isinstance(variable, str):
        return
    from saw.rewards.judge.options import JudgeError, key_in  # loads the client, which only judges need

    try:
        key_in(variable)
    except JudgeError as fault:
        address = running(config)
        if address is None:
            raise ConfigError(f"{KWARGS}.{fault}") from None
        logger.warning(
            "%s.api_key_env is %r, which is not set here: every node of the Ray cluster at %s must have it set before "
            "ray start; on a node without it, the judge gives no verdict",
            *(JUDGE, variable, address),
        )


def _sample_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which verl calls a reward function, for a row whose reference is the response."""
    truth = (row.get("reward_model") or {}).get("ground_truth")
    return {
        "data_source": row.get("data_source"),
        "solution_str": str(truth),
        "ground_truth": truth,
        # added by verl's reward managers and ours
        "extra_info": {
            **(row.get("extra_info") or {}),
            "num_turns": 2,
            "rollout_reward_scores": {},
            "global_step": 0,
        },
    }


def _first_row(config: DictConfig) -> tuple[Path, dict[str, Any]] | None:
    """The first training row and its file; None if there is none to read."""
    files = _training_files(config)
    if not files:
        return None
    first = Path(files[0])
    if first.suffix != ".parquet" or not first.is_file():
        return None  # reported where the data is checked, or by verl
    try:
        for batch in pq.ParquetFile(first).iter_batches(batch_size=1):
            return first, batch.to_pylist()[0]
    except (OSError, pa.ArrowException):
        return None
    raise ConfigError(f"data.train_files has {str(first)!r}, which has no rows; expected at least one")


def _try_on_first_row(
    function: Callable[..., Any], kwargs: Mapping[str, Any], config: DictConfig
) -> Mapping[str, Any] | None:
    """What a reward function returns for the first training row; None if there is no row, or it returns no dict."""
    found = _first_row(config)
    if found is None:
        return None
    first, row = found
    for column in ("reward_model", "extra_info"):
        if not isinstance(row.get(column), Mapping | None):
            raise ConfigError(
                f"data.train_files has {str(first)!r}, whose first row has {column} {row[column]!r}; expected a mapping"
            )
    try:
        result = function(**{**_sample_arguments(row), **kwargs})
    except Exception as error:  # whatever the user's function raises, raised again with a note
        error.add_note(
            f"raised by the reward function on the first row of {first}, called to see which objectives it returns; "
            "to avoid the call, declare them with saw.rewards.returns"
        )
        raise
    if not isinstance(result, Mapping):
        raise ConfigError(f"the reward function returns {type(result).__name__}; expected a dict with the objectives")
    return result


def _check_first_rewards(settings: Settings, rewards: Mapping[str, Any], ranges: Iterable[tuple[float, float]]) -> None:
    """Check the rewards of the first row as the training would check them, hours later.

    Raises:
        ConfigError: for a reward that is not a number, infinite, or below its minimum.
    """
    for name, (low, _) in zip(settings.names, ranges, strict=True):
        tried = f"the reward {name!r} of the first training row, with its reference as the response"
        try:
            value = reward_value(rewards[name])
        except TypeError as error:
            raise ConfigError(f"{tried}: {error}") from None
        if math.isinf(value):
            raise ConfigError(f"{tried}, is {value}; expected a finite number, or NaN if it is missing")
        if exact_minima(*torch.tensor([value, low], dtype=torch.float64)) < low:
            raise ConfigError(f"{tried}, is {value:g}, below its minimum {low:g}; see saw.objectives.{name}.minimum")
