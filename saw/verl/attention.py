"""The attention of verl's FSDP engine, chosen before Ray starts: flash-attn if it is installed, otherwise sdpa.

verl 0.9.1 asks for flash_attention_2 unless the configuration sets another, and without the package flash-attn a
training stops when the model loads. verl's fused log-probabilities are chosen together with the attention
(:mod:`saw.machine.fused_kernels`). A user's setting, True or False, is kept if it can work and refused if not; null
chooses. Other engines have their own settings, which are not changed. docs/attention.md has reasons and numbers.
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
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from packaging.version import Version
from transformers import AutoConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.device import is_torch_npu_available
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import FSDPActorConfig

from saw.machine import environment, fused_kernels
from saw.machine.fused_kernels import MODEL
from saw.verl.config import ConfigError

KEY = f"{MODEL}.override_config.attn_implementation"
BACKEND = f"{MODEL}.fused_kernel_options.impl_backend"
#: Attention -> what it imports: module, name in it, distribution.
FLASH = {
    "flash_attention_2": ("flash_attn", "flash_attn_varlen_func", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash_attn_varlen_func", "flash-attn-3"),
    "flash_attention_4": ("flash_attn.cute", "flash_attn_varlen_func", "flash-attn-4"),
}
#: The first flash-attn whose cross entropy verl can read.
OLDEST_FLASH_ATTN = "2.4.3"
#: Every attention that a training may use.
ALLOWED = (*FLASH, "sdpa", "eager", "flex_attention")
#: Implementations of verl's fused kernels; with any other, verl does not patch the model and fails in the first step.
BACKENDS = ("torch", "triton", "liger")


@dataclass(frozen=True)
class Attention:
    """The chosen attention.

    Attributes:
        name (str): transformers' ``attn_implementation``.
        fused (bool): ``use_fused_kernels``, verl's log-probabilities without flash-attn's cross entropy.
        reason (str): why it was chosen, and what it costs.
    """

    name: str
    fused: bool
    reason: str


def choose(config: DictConfig) -> Attention | None:
    """The attention of a training.

    Args:
        config (DictConfig): verl's whole configuration, as composed.

    Returns:
        Attention | None: None if it is not chosen here: with an engine other than FSDP, or on an Ascend NPU.

    Raises:
        ConfigError: for an attention, or fused kernels, that can't work here.
    """
    if not issubclass(get_class(config.actor_rollout_ref.actor["_target_"]), FSDPActorConfig):
        return None
    if is_torch_npu_available():
        return None
    asked = OmegaConf.select(config, KEY)
    if asked is not None and (fault := _fault(config, asked)):
        raise ConfigError(f"{KEY} is {asked!r}: {fault}")
    flash_fault = _fault(config, "flash_attention_2")
    choice = _for_machine(config, flash_fault) if asked is None else _as_asked(config, asked, flash_fault)
    if not _is_flash(choice.name):
        _check_sequence_parallelism(config, choice)
    if _has_critic(config):
        _check_critic(config)
    return choice


def apply(config: DictConfig, choice: Attention | None) -> None:
    """Write the choice into the configuration of the actor and the reference; None keeps verl's default."""
    if choice is not None:
        OmegaConf.update(config, KEY, choice.name, force_add=True)
    fused = choice.fused if choice is not None else bool(OmegaConf.select(config, fused_kernels.KEY))
    OmegaConf.update(config, fused_kernels.KEY, fused, force_add=True)
    if fused and OmegaConf.select(config, BACKEND) is None:
        OmegaConf.update(config, BACKEND, "torch", force_add=True)


def _as_asked(config: DictConfig, name: str, flash_fault: str | None) -> Attention:
    fused, log_probs = _fused(config, flash_fault)
    # configs/platform/cpu.yaml sets sdpa, so a user may have set nothing
    why = "trainer.device is cpu" if config.trainer.device == "cpu" and name == "sdpa" else f"{KEY} is set"
    return Attention(name, fused, "; ".join(filter(None, [why, log_probs])))


def _for_machine(config: DictConfig, flash_fault: str | None) -> Attention:
    fused, log_probs = _fused(config, flash_fault)
    if flash_fault is None:
        name, parts = "flash_attention_2", [f"flash-attn {version('flash-attn')} is installed", log_probs]
    elif config.trainer.device == "cpu":
        name, parts = "sdpa", ["trainer.device is cpu", log_probs]
    else:
        packed = config.actor_rollout_ref.model.use_remove_padding
        squared = "the cost is quadratic in a micro-batch's tokens" if packed else ""
        name, parts = "sdpa", [flash_fault, squared, log_probs, f"faster with flash-attn: {environment.flash_attn()}"]
    return Attention(name, fused, "; ".join(filter(None, parts)))


def _fused(config: DictConfig, flash_fault: str | None) -> tuple[bool, str]:
    """Whether verl's fused kernels compute the log-probabilities, and the reason to print: empty for flash-attn.

    Raises:
        ConfigError: if they were asked for and can't work.
    """
    asked = OmegaConf.select(config, fused_kernels.KEY)
    _check_fused(config, asked)
    if asked:
        return True, f"log-probabilities by verl's fused kernels, because {fused_kernels.KEY} is set"
    if flash_fault is None or config.trainer.device == "cpu":
        return False, ""
    why_not = _fused_fault(config) if asked is None else f"{fused_kernels.KEY} is False"
    if why_not is None:
        return True, "log-probabilities by verl's fused kernels"
    return False, f"log-probabilities token by token, slow and rounded to 16 bits, because {why_not}"


def _check_fused(config: DictConfig, asked: Any) -> None:
    """Refuse a setting of the fused kernels that is invalid, can't work, or contradicts another."""
    key, remedy = fused_kernels.KEY, "set it to False, or to null, which chooses"
    if asked not in (True, False, None):
        raise ConfigError(f"{key} is {asked!r}; expected True, False, or null, which chooses")
    actor = config.actor_rollout_ref.actor
    if not OmegaConf.is_interpolation(actor, "use_fused_kernels"):
        own = actor.get("use_fused_kernels")
        if own is not None and own != asked:
            raise ConfigError(
                f"actor_rollout_ref.actor.use_fused_kernels is {own!r} and {key} is {asked!r}; verl's FSDP engine "
                "reads only the second: set that, and leave the first out"
            )
    if not asked:
        return
    backend = OmegaConf.select(config, BACKEND)
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"{BACKEND} is {backend!r}; expected one of {', '.join(BACKENDS)}")
    found = _model_config(config)
    fault = fused_kernels.impossible(config, tied=isinstance(found, str) or found.tie_word_embeddings)
    if fault is not None:
        raise ConfigError(f"{key} is True, and {fault}; {remedy}")


def _fault(config: DictConfig, name: str) -> str | None:
    """Why an attention can't work here; None if it can."""
    if not isinstance(name, str):
        return "expected a name"
    if name in FLASH:
        return _flash_fault(config, name, _policies(config))
    if "/" in name:  # a kernel of the Hub
        if not _is_flash(name):
            return "among the Hub's kernels, only flash attention is known to keep packed rows apart"
        return None if importlib.util.find_spec("kernels") else "a kernel of the Hub needs pip install kernels"
    if name == "flex_attention" and config.trainer.device == "cpu":
        return "flex_attention has no backward pass on a CPU; use sdpa"
    if name not in ALLOWED:
        return f"expected one of {', '.join(ALLOWED)}, a kernel of the Hub, or null, which chooses"
    return None


def _flash_fault(config: DictConfig, name: str, engines: Sequence[str]) -> str | None:
    if config.trainer.device == "cpu":
        return "flash attention needs a GPU, and trainer.device is cpu"
    if (fault := _import_fault(*FLASH[name])) is not None:
        return fault
    if torch.cuda.is_available() and (has := torch.cuda.get_device_capability()) < (8, 0):
        return f"flash attention needs a GPU of compute capability 8.0, but {torch.cuda.get_device_name()} has {has}"
    for key in engines:
        precision = OmegaConf.select(config, f"{key}.mixed_precision.param_dtype") or "bf16"
        if PrecisionType.to_dtype(precision) == torch.float32:
            return f"flash attention computes only in 16 bits, but {key}.mixed_precision.param_dtype is {precision!r}"
    return None


def _import_fault(module: str, name: str, distribution: str) -> str | None:
    """Import the module: a build for another torch fails only then."""
    try:
        getattr(importlib.import_module(module), name)
        found = version(distribution)
    except (ImportError, AttributeError, OSError, PackageNotFoundError) as error:
        return f"{distribution} can't be imported ({error})"
    if distribution == "flash-attn" and Version(found) < Version(OLDEST_FLASH_ATTN):
        return f"flash-attn is {found}, but verl needs {OLDEST_FLASH_ATTN} or newer"
    return None


def _is_flash(name: str) -> bool:
    return name in FLASH or ("/" in name and re.search(r"flash[-_]?attn", name) is not None)


def _policies(config: DictConfig) -> list[str]:
    """The keys of the actor's engine, and of the reference's if there is one."""
    roles = ["actor", *(["ref"] if need_reference_policy(config) else [])]
    return [f"actor_rollout_ref.{role}.fsdp_config" for role in roles]


def _check_sequence_parallelism(config: DictConfig, choice: Attention) -> None:
    """verl exchanges ranks' tokens inside flash attention's function; other attentions see only one rank's tokens."""
    for engine in _policies(config):
        for place in (engine.rpartition(".")[0], engine):
            size = OmegaConf.select(config, f"{place}.ulysses_sequence_parallel_size") or 1
            if size > 1:
                raise ConfigError(
                    f"{place}.ulysses_sequence_parallel_size is {size}, and the attention is {choice.name} "
                    f"({choice.reason}): only flash attention sees the other ranks' tokens, and the training would be "
                    f"silently wrong. Set it to 1, or install flash-attn: {environment.flash_attn()}"
                )


def _has_critic(config: DictConfig) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no critic; verl's start prints it too
        return need_critic(config)


def _check_critic(config: DictConfig) -> None:
    """verl 0.9.1 always loads a critic with flash_attention_2 (``verl.utils.model.load_valuehead_model``)."""
    if fault := _flash_fault(config, "flash_attention_2", ["critic.fsdp"]):
        raise ConfigError(
            f"critic.enable is {config.critic.enable} and algorithm.adv_estimator {config.algorithm.adv_estimator!r}: "
            f"verl loads the critic with flash_attention_2, but {fault}. Set critic.enable to False, or install "
            f"flash-attn: {environment.flash_attn()}"
        )


def _fused_fault(config: DictConfig) -> str | None:
    """Why verl's fused log-probabilities are not chosen; None if they are known to be correct."""
    found = _model_config(config)
    if isinstance(found, str):
        return found
    untried = fused_kernels.untried(config, found.model_type)
    return untried or fused_kernels.impossible(config, found.tie_word_embeddings)


def _model_config(config: DictConfig) -> Any:
    """transformers' configuration of the model, or a message why it can't be read."""
    model = config.actor_rollout_ref.model
    path = model.get("hf_config_path") or model.path
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        return f"the model's configuration can't be read here ({str(error).splitlines()[0]})"
