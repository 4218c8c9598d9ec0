"""Hands a running Ray cluster what it needs: a configuration that means the same there, and variables.

If this process starts Ray, the workers have this folder and this environment. The workers of a running cluster have the
folder and the environment of a ``ray start``, perhaps on other nodes. So :func:`settle` resolves variables and paths
here, and :func:`handing_over` gives the workers the variables that they need, without Ray logging any key.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.resolvers import oc

from saw.machine.cluster import UNITS, ray_init, running, storage_units
from saw.records.metrics_file import LOCATION
from saw.rewards import JUDGE

logger = logging.getLogger(__name__)

#: Keys of folders that a training writes to, and of files that it writes.
FOLDERS = ("trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir")
WRITTEN = (f"{JUDGE}.cache", f"{JUDGE}.faults")
#: Keys of all paths that are written to.
OUTPUTS = (*FOLDERS, "global_profiler.save_path", *WRITTEN)
#: Keys of data files.
DATA = ("data.train_files", "data.val_files")
#: Keys of other files that are read; a value may also name a packaged module, by ``pkg://``.
FILES = (
    "data.custom_cls.path",
    "data.sampler.class_path",
    "actor_rollout_ref.rollout.router_config_path",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path",
    "actor_rollout_ref.rollout.multi_turn.tool_config_path",
    "actor_rollout_ref.rollout.multi_turn.function_tool_path",
    "trainer.v1.sampler.custom_sampler.path",
)
#: Keys of all paths that are read; a path that doesn't exist may be something else, such as a model's name on the Hub.
#: A judge's prompt is not among them: it is a name in ``saw/rewards/judge/prompts``, or an absolute path.
INPUTS = (
    *DATA,
    *FILES,
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.hf_config_path",
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.model.lora_adapter_path",
    "reward.custom_reward_function.path",
    "reward.reward_manager.module.path",
    "reward.reward_model.model_path",
    "trainer.resume_from_path",
)

#: Options of ``ray.init`` that Ray refuses for a running cluster: its nodes already have theirs.
OF_A_NEW_CLUSTER = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "include_dashboard")

#: Variables that workers get in Ray's ``runtime_env``, which Ray logs on every node.
SETTINGS = ("SAW_", "VERL_", "VLLM_", "NCCL_", "TQ_", "TENSORBOARD_")
#: Variables that may hold a key or a password: Ray logs nothing of these.
PRIVATE = ("WANDB_", "HF_", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
#: Endings of the names of variables that hold a key.
SECRET = re.compile(
    r"(^|_)((API)?KEYS?|TOKEN|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)$",  # not TOKENS: that is a count
    re.IGNORECASE,
)
#: Variables of this process or node, which would be wrong elsewhere.
OF_THIS_PROCESS = frozenset({"SAW_RUN_ID", "VLLM_HOST_IP", "VLLM_PORT", "WANDB_SERVICE"})
#: Variables that hold a path, which may be relative to this process's folder.
PATHS = frozenset(
    {"SAW_RUNS", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TENSORBOARD_DIR", LOCATION}
    | {"WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"}
)

HOOK = "worker_process_setup_hook"


def settle(config: DictConfig) -> None:
    """Make the configuration mean the same in any process of a cluster.

    Raises:
        ValueError: if it reads a variable that isn't set, or a key; if the address is invalid; if it sets the hook that
            hands over keys.
    """
    _resolve_environment(config)
    _make_absolute(config)
    if OmegaConf.select(config, UNITS, default=0) is None:
        OmegaConf.update(config, UNITS, storage_units(config))
    address = running(config)
    if address is not None:
        _refuse_hook(config)
        _leave_out(config, address)


def _resolve_environment(node: Any) -> None:
    """Resolve those interpolations below a node that read the environment; leave the others."""
    keys: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        if OmegaConf.is_interpolation(node, key):
            text = str(node._get_node(key)._value())
            if "oc.env" in text:
                node[key] = _value(node, key, text)
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig | ListConfig):
            _resolve_environment(node[key])


def _value(node: Any, key: Any, text: str) -> Any:
    """The value of an interpolation; adds the variables that it reads to a list."""
    keys: list[str] = []

    def read(variable: str, *default: Any) -> Any:
        if SECRET.search(variable):
            keys.append(variable)
            return None
        return oc.env(variable, *default)

    OmegaConf.register_new_resolver("oc.env", read, replace=True)
    try:
        value = node[key]
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    if keys:
        raise ValueError(
            f"{node._get_full_key(key)} is {text!r}, and verl prints the configuration: {keys[0]} would be in "
            "logs and in run.json. Let the code that needs it read the variable, as a judge does with api_key_env"
        )
    # the value of a variable is never an interpolation
    return value.replace("${", r"\${") if isinstance(value, str) else value


def _make_absolute(config: DictConfig) -> None:
    for keys, exists in ((OUTPUTS, lambda path: True), (INPUTS, os.path.exists)):
        for key in keys:
            value = OmegaConf.select(config, key)
            if isinstance(value, str):
                absolute: Any = _absolute(value, exists)
            elif isinstance(value, ListConfig):
                absolute = [_absolute(path, exists) if isinstance(path, str) else path for path in value]
            else:
                continue
            if absolute != value:
                OmegaConf.update(config, key, absolute)


def _absolute(path: str, exists: Callable[[str], bool]) -> str:
    scheme, rest = ("file://", path[7:]) if path.startswith("file://") else ("", path)
    expanded = os.path.abspath(os.path.expanduser(rest))
    return scheme + expanded if rest and "://" not in rest and exists(expanded) else path


def _refuse_hook(config: DictConfig) -> None:
    if own := OmegaConf.select(config, f"ray_kwargs.ray_init.runtime_env.{HOOK}"):
        raise ValueError(
            f"ray_kwargs.ray_init.runtime_env.{HOOK} is {own!r}, but on a running Ray cluster this hook "
            "hands over keys: remove it"
        )


def _leave_out(config: DictConfig, address: str) -> None:
    options = ray_init(config)
    with open_dict(options):
        left_out = {key: options.pop(key) for key in OF_A_NEW_CLUSTER if key in options}
    said = ", ".join(f"ray_kwargs.ray_init.{key}={value}" for key, value in left_out.items() if value is not None)
    if said:
        logger.warning("left out: %s; the Ray cluster at %s is already running, with its own resources", said, address)


# ---------------------------------------------------------------- variables


def variables(config: DictConfig, environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables of this process that the workers of a running cluster need.

    Args:
        config (DictConfig): verl's configuration; it names the judge's key.
        environment (Mapping[str, str]): of this process.

    Returns:
        tuple[dict[str, str], dict[str, str]]: settings, which Ray may log; and variables that may hold a key.
    """
    from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV

    # verl omits those that are set here, because a Ray that this process starts would inherit them
    settings = (*SETTINGS, *PPO_RAY_RUNTIME_ENV["env_vars"])
    judge = OmegaConf.select(config, f"{JUDGE}.api_key_env")
    plain: dict[str, str] = {}
    private: dict[str, str] = {}
    for name, value in environment.items():
        is_secret = name == judge or SECRET.search(name) is not None
        if name in OF_THIS_PROCESS or (is_secret and not value.strip()):  # the nodes may have their own key
            continue
        if name in PATHS and value:
            value = os.path.abspath(os.path.expanduser(value))
        if name == judge or name.startswith(PRIVATE) or name.lower() in PRIVATE:
            private[name] = value
        elif name.startswith(settings):
            (private if is_secret else plain)[name] = value
    return plain, private


@contextmanager
def handing_over(config: DictConfig) -> Iterator[None]:
    """Within this context, ``ray.init`` gives a running cluster's workers the variables that they need.

    If this process starts Ray, the workers inherit them. Ray writes a ``runtime_env`` into the logs of every node, so
    variables that may hold a key don't go there. They go into a function that Ray keeps in the memory of its head node
    for the job, and that each worker calls when it starts: Ray's ``worker_process_setup_hook``.
    """
    if running(config) is None:
        yield
        return
    import ray

    stock = ray.init

    @functools.wraps(stock)
    def init(*args: Any, runtime_env: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Ray's, with the variables added to ``runtime_env``."""
        runtime_env = dict(runtime_env or {})
        # read only when Ray starts: verl sets variables until then
        plain, private = variables(config, os.environ)
        given = _of_the_job() | set(runtime_env.get("env_vars") or {})
        plain = {name: value for name, value in plain.items() if name not in given}
        runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **plain}
        if private:
            runtime_env[HOOK] = _setter(private)
        return stock(*args, runtime_env=runtime_env, **options)

    ray.init = init
    try:
        yield
    finally:
        ray.init = stock


def _of_the_job() -> set[str]:
    """Variables that were passed to ``ray job submit``; Ray refuses a variable that is passed twice."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})


def _setter(private: Mapping[str, str]) -> Callable[[], None]:
    """A function that sets the variables, and that Ray can serialise with them."""

    def set_variables_of_the_driver() -> None:
        os.environ.update(private)

    return set_variables_of_the_driver
