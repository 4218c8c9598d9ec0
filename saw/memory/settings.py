"""The settings of a training that its memory depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from saw.machine.cluster import engine_sizes
from saw.method.options import Options
from saw.method.registry import get_method
from saw.verl.names import MODES

DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "auto": 2}
#: Key of each limit on a micro-batch's tokens, and the key that replaces it if batches are not dynamic.
TOKEN_KEYS = {
    "update": ("actor.ppo_max_token_len_per_gpu", "actor.ppo_micro_batch_size_per_gpu"),
    "log_probs": ("rollout.log_prob_max_token_len_per_gpu", "rollout.log_prob_micro_batch_size_per_gpu"),
    "reference": ("ref.log_prob_max_token_len_per_gpu", "ref.log_prob_micro_batch_size_per_gpu"),
}


@dataclass(frozen=True)
class Settings:
    """The settings that the estimate uses; sizes of a number in bytes, lengths in tokens.

    Attributes:
        weight_bytes (int): of the sharded parameters, and with them of gradients and Adam's moments.
        compute_bytes (int): of gathered parameters and activations.
        reduce_bytes (int): of gradients during the reduction.
        shard_over (int): GPUs that share one copy; -1 for all.
        param_offload (bool): the actor's parameters leave the GPU between its phases.
        optimizer_offload (bool): Adam's moments do too.
        cpu_policy (bool): parameters, gradients and moments are on the host (``offload_policy``).
        defer_sync (bool): whole gradients are kept until the last micro-batch.
        checkpointing (bool): gradient checkpointing.
        fused (bool | None): verl's fused kernels, which never hold all logits; None chooses.
        extra_logits (int): further copies of the logits, for a temperature other than 1 and for padding.
        entropy (str): how it is computed: ``compiled``, ``chunked`` or ``plain``.
        entropy_in_update (bool): whether the update computes it.
        sequence_parallel (Mapping[str, int]): Ulysses' size, by key of :data:`TOKEN_KEYS`.
        tokens (Mapping[str, int]): of a micro-batch, by key of :data:`TOKEN_KEYS`; no ``reference`` without a KL term.
        dynamic (Mapping[str, bool]): for each of ``tokens``, whether it is a limit, or follows from a number of rows.
        longest (int): tokens of the longest prompt and response together.
        objectives (int): policy gradients that the method computes; 0 for most.
        gradient_layers (int | None): the number of layers they cover; None for all parameters.
        share (float): the share of the GPU's memory that vLLM takes while it generates.
        sleeps (bool): whether vLLM frees weights and KV cache while the actor works.
        vllm_bytes (int): of a number in vLLM.
        tensor_parallel (int): vLLM's tensor-parallel size.
    """

    weight_bytes: int
    compute_bytes: int
    reduce_bytes: int
    shard_over: int
    param_offload: bool
    optimizer_offload: bool
    cpu_policy: bool
    defer_sync: bool
    checkpointing: bool
    fused: bool | None
    extra_logits: int
    entropy: str
    entropy_in_update: bool
    sequence_parallel: Mapping[str, int]
    tokens: Mapping[str, int]
    dynamic: Mapping[str, bool]
    longest: int
    objectives: int
    gradient_layers: int | None
    share: float
    sleeps: bool
    vllm_bytes: int
    tensor_parallel: int


def read_settings(config: DictConfig) -> Settings:
    """Read the settings from a composed configuration.

    Raises:
        ValueError: for what the estimate does not cover: an engine other than FSDP2, LoRA, a rollout other than vLLM, a
            rollout with GPUs of its own.
    """
    parts = config.actor_rollout_ref
    actor, rollout, model = parts.actor, parts.rollout, parts.model
    for key, value, allowed in (
        ("actor.strategy", actor.strategy, "fsdp2"),
        ("model.lora_rank", model.get("lora_rank", 0), 0),
        ("rollout.name", rollout.name, "vllm"),
        ("rollout.pipeline_model_parallel_size", rollout.get("pipeline_model_parallel_size", 1), 1),
    ):
        if value != allowed:
            raise ValueError(f"actor_rollout_ref.{key} is {value!r}; the memory estimate covers only {allowed!r}")
    mode = config.trainer.v1.trainer_mode
    if MODES.get(mode, mode) == "separate_async":
        raise ValueError(f"trainer.v1.trainer_mode is {mode!r}; the memory estimate covers only one set of GPUs")
    fsdp = actor.fsdp_config
    precision = fsdp.get("mixed_precision") or {}
    options = Options(**OmegaConf.to_container(config.saw.options, resolve=True))  # type: ignore[arg-type]
    has_reference = actor.use_kl_loss or config.algorithm.use_kl_in_reward
    longest = config.data.max_prompt_length + config.data.max_response_length
    names = [name for name in TOKEN_KEYS if name != "reference" or has_reference]
    return Settings(
        weight_bytes=_bytes_of("actor.fsdp_config.model_dtype", fsdp.get("model_dtype") or "fp32"),
        compute_bytes=_bytes_of("actor.fsdp_config.mixed_precision.param_dtype", precision.get("param_dtype", "bf16")),
        reduce_bytes=_bytes_of("actor.fsdp_config.mixed_precision.reduce_dtype", precision.get("reduce_dtype", "fp32")),
        shard_over=fsdp.fsdp_size,
        param_offload=fsdp.param_offload,
        optimizer_offload=fsdp.optimizer_offload,
        cpu_policy=fsdp.offload_policy,
        defer_sync=fsdp.get("use_no_sync_for_gradient_accumulation", True),
        checkpointing=model.enable_gradient_checkpointing,
        fused=model.use_fused_kernels,
        extra_logits=(rollout.temperature != 1.0) + (not model.use_remove_padding) + fsdp.entropy_checkpointing,
        entropy="chunked"
        if fsdp.entropy_from_logits_with_chunking
        else ("compiled" if fsdp.use_torch_compile else "plain"),
        entropy_in_update=bool(actor.calculate_entropy or actor.entropy_coeff),
        sequence_parallel={name: _sequence_parallel(parts, name) for name in names},
        tokens={name: _tokens(parts, name, longest) for name in names},
        dynamic={name: _dynamic(parts, name) for name in names},
        longest=longest,
        objectives=len(config.saw.objectives) if "gradients" in get_method(config.saw.method).needs(options) else 0,
        gradient_layers=len(options.gradient.layers) if options.gradient.layers else None,
        share=rollout.gpu_memory_utilization,
        sleeps=rollout.free_cache_engine and rollout.get("enable_sleep_mode", True),
        vllm_bytes=_bytes_of("rollout.dtype", rollout.dtype),
        tensor_parallel=engine_sizes(config)["tensor_model_parallel_size"],
    )


def _bytes_of(key: str, dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"actor_rollout_ref.{key} is {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def _sequence_parallel(parts: DictConfig, name: str) -> int:
    """Ranks that share a sequence. verl uses the first of two keys if it is above 1; the reference has its own."""
    part = parts.ref if name == "reference" else parts.actor
    first = part.get("ulysses_sequence_parallel_size") or 1
    return first if first > 1 else part.fsdp_config.ulysses_sequence_parallel_size


def _dynamic(parts: DictConfig, name: str) -> bool:
    """As in verl's workers; the log-probabilities' own key must equal the actor's."""
    return parts.ref.log_prob_use_dynamic_bsz if name == "reference" else parts.actor.use_dynamic_bsz


def _tokens(parts: DictConfig, name: str, longest: int) -> int:
    """Most tokens of a micro-batch. verl never exceeds the limit of a dynamic batch, and refuses a longer sequence."""
    limit, rows = TOKEN_KEYS[name]
    dynamic = _dynamic(parts, name)
    value = OmegaConf.select(parts, limit if dynamic else rows)
    if value is None:
        raise ValueError(f"actor_rollout_ref.{limit if dynamic else rows} is not set; expected a number")
    return value if dynamic else value * longest
