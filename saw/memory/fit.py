"""Whether an estimate fits a GPU, and what to lower if not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from saw.machine import accelerator
from saw.memory.phases import GIB, Estimate, Phase
from saw.memory.settings import TOKEN_KEYS

#: Share of a GPU's nominal memory that CUDA gives to a program: 79.1 of 80 GiB, 39.4 of 40.
USABLE = 0.98
#: Largest number of tokens that :func:`largest_tokens` tries, and its step.
MOST_TOKENS, TOKEN_STEP = 131_072, 1_024


def fits(found: Estimate, gpu_bytes: float) -> list[str]:
    """What does not fit on GPUs of this size, each with the setting to change; empty if everything fits.

    Args:
        found (Estimate): of the training.
        gpu_bytes (float): what a program can use of a GPU (:func:`usable`).
    """
    settings = found.settings
    faults = [
        f"actor_rollout_ref.{TOKEN_KEYS[name][0]} is {limit}; expected at least {settings.longest}, a prompt with its "
        "response"
        for name, limit in settings.tokens.items()
        if settings.dynamic[name] and limit < settings.longest
    ]
    if found.kv_tokens(gpu_bytes) < settings.longest:
        faults.append(
            f"vLLM: {settings.share * gpu_bytes / GIB:.1f} GiB is too little for {found.vllm_weights / GIB:.1f} GiB of "
            f"weights and the KV cache of {settings.longest} tokens; raise "
            f"actor_rollout_ref.rollout.gpu_memory_utilization ({settings.share})"
        )
    for phase in found.phases:
        need = phase.total(gpu_bytes, settings.share)
        if need > gpu_bytes:
            faults.append(
                f"{phase.name}: about {need / GIB:.1f} GiB needed, {gpu_bytes / GIB:.1f} available; "
                f"{_remedy(found, phase, gpu_bytes)}"
            )
    return faults


def _remedy(found: Estimate, phase: Phase, gpu_bytes: float) -> str:
    settings = found.settings
    if phase.vllm and phase.name == "generation":
        rest = gpu_bytes - phase.total(gpu_bytes, 0.0)
        share = int(100 * rest / gpu_bytes) / 100
        if share > 0 and not fits(replace(found, settings=replace(settings, share=share)), gpu_bytes):
            return f"lower actor_rollout_ref.rollout.gpu_memory_utilization to {share}"
    if phase.tokens is not None:
        dynamic = settings.dynamic[phase.tokens]
        key = TOKEN_KEYS[phase.tokens][0 if dynamic else 1]
        tokens = largest_tokens(found, gpu_bytes, [phase.tokens])
        if tokens:
            limit = tokens if dynamic else tokens // settings.longest
            return f"lower actor_rollout_ref.{key} to {limit}"
    return "use more GPUs, or actor_rollout_ref.actor.fsdp_config.{param,optimizer}_offload=true"


def largest_tokens(found: Estimate, gpu_bytes: float, names: Iterable[str] = TOKEN_KEYS) -> int:
    """Largest micro-batch that fits, with the given limits all set to it.

    Args:
        found (Estimate): of the training.
        gpu_bytes (float): what a program can use of a GPU.
        names (Iterable[str]): keys of :data:`TOKEN_KEYS`.

    Returns:
        int: tokens, a multiple of 1,024, at most 131,072; 0 if not even a prompt with its response fits.
    """
    names = set(names)
    for tokens in range(MOST_TOKENS, 0, -TOKEN_STEP):
        if tokens < found.settings.longest:
            break
        limits = {name: tokens if name in names else limit for name, limit in found.settings.tokens.items()}
        tried = replace(found, settings=replace(found.settings, tokens=limits))
        phases = [phase for phase in tried.phases if phase.tokens in names]
        if all(phase.total(gpu_bytes, tried.settings.share) <= gpu_bytes for phase in phases):
            return tokens
    return 0


def usable(gib: float) -> float:
    """Bytes that a program can use of a GPU sold with ``gib`` GB."""
    return gib * GIB * USABLE


def memory_of_a_gpu() -> float | None:
    """Bytes that a program can use of this machine's smallest GPU; None if torch can use none."""
    return accelerator.probe().memory
