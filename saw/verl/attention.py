"""The attention of verl's FSDP engine, chosen before Ray starts: flash-attn where it is installed, else sdpa.

verl 0.9.1 asks for flash_attention_2 unless the configuration says otherwise, and without the package flash-attn a
training stops when the model loads. What a user sets is kept if it can work, and refused if not. Other engines have
settings of their own and are left alone. docs/attention.md has the reasons and the numbers.
Contract: ``tests/contract/test_attention.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from packaging.version import Version
from transformers import AutoConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.device import is_torch_npu_available
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import FSDPActorConfig

from saw.verl.config import ConfigError

MODEL = "actor_rollout_ref.model"
KEY = f"{MODEL}.override_config.attn_implementation"
#: Attention -> what has to be importable for it: module, name in it, distribution.
FLASH = {
    "flash_attention_2": ("flash_attn", "flash_attn_varlen_func", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash_attn_varlen_func", "flash-attn-3"),
    "flash_attention_4": ("flash_attn.cute", "flash_attn_varlen_func", "flash-attn-4"),
}
#: The first flash-attn whose cross entropy verl can read.
OLDEST_FLASH_ATTN = "2.4.3"
INSTALL = "pip install flash-attn --no-build-isolation (needs nvcc, and builds for minutes to hours)"
#: Every attention that a training may have.
ALLOWED = (*FLASH, "sdpa", "eager", "flex_attention")
#: Model types for which verl's fused log-probabilities are known to be right (the contract test).
FUSED_MODELS = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True)
class Attention:
    """A choice.

    Attributes:
        name (str): transformers' ``attn_implementation``.
        fused (bool): turn on ``use_fused_kernels``, verl's log-probabilities without flash-attn's cross entropy.
        reason (str): why, and what it costs.
    """

    name: str
    fused: bool
    reason: str


def choose(config: DictConfig) -> Attention | None:
    """The attention of a training.

    Args:
        config (DictConfig): verl's whole configuration, as it is composed.

    Returns:
        Attention | None: None where it isn't ours to choose: another engine than FSDP, or an Ascend NPU.

    Raises:
        ConfigError: for an attention that can't work here.
    """
    if not issubclass(get_class(config.actor_rollout_ref.actor["_target_"]), FSDPActorConfig):
        return None
    if is_torch_npu_available():
        return None
    asked = OmegaConf.select(config, KEY)
    if asked is not None and (fault := _fault(config, asked)):
        raise ConfigError(f"{KEY} is {asked!r}: {fault}")
    choice = _for_machine(config) if asked is None else _as_asked(config, asked)
    if not _is_flash(choice.name):
        _check_sequence_parallelism(config, choice)
    if _has_critic(config):
        _check_critic(config)
    return choice


def apply(config: DictConfig, choice: Attention) -> None:
    """Write a choice into the configuration, where the actor and the reference read it."""
    OmegaConf.update(config, KEY, choice.name, force_add=True)
    if choice.fused:
        OmegaConf.update(config, f"{MODEL}.use_fused_kernels", True)
        OmegaConf.update(config, f"{MODEL}.fused_kernel_options.impl_backend", "torch", force_add=True)


def _as_asked(config: DictConfig, name: str) -> Attention:
    reason = f"{KEY} is set"
    model = config.actor_rollout_ref.model
    if config.trainer.device != "cpu" and not model.use_fused_kernels and _import_fault(*FLASH["flash_attention_2"]):
        reason += f"; log-probabilities go token by token without flash-attn, but for {MODEL}.use_fused_kernels=True"
    return Attention(name, False, reason)


def _for_machine(config: DictConfig) -> Attention:
    fault = _fault(config, "flash_attention_2")
    if fault is None:
        return Attention("flash_attention_2", False, f"flash-attn {version('flash-attn')} is installed")
    model = config.actor_rollout_ref.model
    if config.trainer.device == "cpu":
        return Attention("sdpa", False, "trainer.device is cpu")
    why_not = None if model.use_fused_kernels else _fused_fault(config)
    if why_not is None:
        log_probs = "log-probabilities by verl's fused kernels"
    else:
        log_probs = f"log-probabilities token by token, slow and rounded to 16 bits, as {why_not}"
    packed = "; a micro-batch costs its tokens squared" if model.use_remove_padding else ""
    reason = f"{fault}{packed}; {log_probs}; faster with flash-attn: {INSTALL}"
    return Attention("sdpa", why_not is None and not model.use_fused_kernels, reason)


def _fault(config: DictConfig, name: str) -> str | None:
    """Why an attention can't work here; None if it can."""
    if not isinstance(name, str):
        return "expected a name"
    if name in FLASH:
        return _flash_fault(config, name, _policies(config))
    if "/" in name:  # a kernel of the Hub
        if not _is_flash(name):
            return "of the Hub's kernels only flash attention's are known to keep packed rows apart"
        return None if importlib.util.find_spec("kernels") else "a kernel of the Hub needs pip install kernels"
    if name == "flex_attention" and config.trainer.device == "cpu":
        return "flex_attention has no backward pass on a CPU; take sdpa"
    if name not in ALLOWED:
        return f"expected one of {', '.join(ALLOWED)}, a kernel of the Hub, or null, which chooses"
    return None


def _flash_fault(config: DictConfig, name: str, engines: Sequence[str]) -> str | None:
    if config.trainer.device == "cpu":
        return "flash attention needs a GPU, and trainer.device is cpu"
    if (fault := _import_fault(*FLASH[name])) is not None:
        return fault
    if torch.cuda.is_available() and (has := torch.cuda.get_device_capability()) < (8, 0):
        return f"flash attention needs a GPU of compute capability 8.0, and {torch.cuda.get_device_name()} has {has}"
    for key in engines:
        precision = OmegaConf.select(config, f"{key}.mixed_precision.param_dtype") or "bf16"
        if PrecisionType.to_dtype(precision) == torch.float32:
            return f"flash attention computes in 16 bits only, and {key}.mixed_precision.param_dtype is {precision!r}"
    return None


def _import_fault(module: str, name: str, distribution: str) -> str | None:
    """Import it: what is built for another torch is installed, and fails only then."""
    try:
        getattr(importlib.import_module(module), name)
        found = version(distribution)
    except (ImportError, AttributeError, OSError, PackageNotFoundError) as error:
        return f"{distribution} can't be imported ({error})"
    if distribution == "flash-attn" and Version(found) < Version(OLDEST_FLASH_ATTN):
        return f"flash-attn is {found}, and verl needs {OLDEST_FLASH_ATTN} or newer"
    return None


def _is_flash(name: str) -> bool:
    return name in FLASH or ("/" in name and re.search(r"flash[-_]?attn", name) is not None)


def _policies(config: DictConfig) -> list[str]:
    """The keys of the actor's engine, and of the reference's where there is one."""
    roles = ["actor", *(["ref"] if need_reference_policy(config) else [])]
    return [f"actor_rollout_ref.{role}.fsdp_config" for role in roles]


def _check_sequence_parallelism(config: DictConfig, choice: Attention) -> None:
    """verl's exchange between the ranks is in flash attention's function; another attention sees one rank's tokens."""
    for engine in _policies(config):
        for place in (engine.rpartition(".")[0], engine):
            size = OmegaConf.select(config, f"{place}.ulysses_sequence_parallel_size") or 1
            if size > 1:
                raise ConfigError(
                    f"{place}.ulysses_sequence_parallel_size is {size}, and the attention is {choice.name} "
                    f"({choice.reason}): only flash attention sees the other ranks' tokens, and the training would be "
                    f"silently wrong. Set it to 1, or install flash-attn: {INSTALL}"
                )


def _has_critic(config: DictConfig) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # verl's start gives it as well: that there is no critic
        return need_critic(config)


def _check_critic(config: DictConfig) -> None:
    """verl 0.9.1 loads a critic with flash_attention_2, whatever is set (``verl.utils.model.load_valuehead_model``)."""
    if fault := _flash_fault(config, "flash_attention_2", ["critic.fsdp"]):
        raise ConfigError(
            f"critic.enable is {config.critic.enable} and algorithm.adv_estimator {config.algorithm.adv_estimator!r}: "
            f"verl loads the critic with flash_attention_2, and {fault}. Set critic.enable to False, or install "
            f"flash-attn: {INSTALL}"
        )


def _fused_fault(config: DictConfig) -> str | None:
    """Why verl's fused log-probabilities can't stand in; None if they can."""
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    if actor.strategy != "fsdp2":
        return f"actor_rollout_ref.actor.strategy is {actor.strategy!r} and verl's fused kernels are tried under fsdp2"
    if model.lora_rank > 0:
        return f"{MODEL}.lora_rank is {model.lora_rank} and verl's fused kernels are not tried with adapters"
    if actor.get("calculate_sum_pi_squared"):
        return "actor_rollout_ref.actor.calculate_sum_pi_squared is True, for which verl needs the logits"
    path = model.get("hf_config_path") or model.path
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        return f"the model's configuration can't be read here ({str(error).splitlines()[0]})"
    if found.model_type not in FUSED_MODELS:
        return f"verl's fused kernels are not tried with the model type {found.model_type!r}"
    if not OmegaConf.select(model, "override_config.tie_word_embeddings", default=found.tie_word_embeddings):
        return "the model's output layer has weights of its own, which verl's fused kernels can't read under FSDP2"
    return None
