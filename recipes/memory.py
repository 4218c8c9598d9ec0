"""What a training needs of each GPU's memory, estimated before anything starts.

    python -m recipes.memory --model 1.5b --gpus 4 --gpu-memory 80
    python -m recipes.memory --model 3b --gpus 4 --gpu-memory 40 --method gradient_gdpo --no-flash-attn
    python -m recipes.memory --document         the tables of docs/memory.md

For verl 0.9.1's synchronous trainer with FSDP2 and vLLM on the same GPUs. A step's phases follow each other, so the
largest of them decides. Where each formula comes from: docs/memory.md. KEY=VALUE are Hydra overrides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from saw.methods import get_method
from saw.options import Options
from saw.report.tables import markdown

GIB = 2**30
#: Share of the memory on a GPU's label that CUDA gives to a program: 79.1 of 80 GiB, 39.4 of 40.
USABLE = 0.98
#: Allowances, not derived and not measured here. Two processes' CUDA contexts, NCCL and cuBLAS buffers, and what vLLM
#: keeps while it sleeps (CUDA graphs).
CONTEXTS = 4 * GIB
#: What PyTorch's allocator holds beyond the tensors, as a share of them.
FRAGMENTATION = 0.05
#: vLLM's own activations and CUDA graphs, which its share of the GPU must hold beside weights and KV cache.
VLLM_WORK = 3 * GIB
#: Tokens of a chunk in verl's fused kernels, and the float32 copies of a chunk's logits in their backward pass.
FUSED_CHUNK, FUSED_COPIES = 512, 8
#: Largest number of tokens that :func:`largest_tokens` looks at, and its step.
MOST_TOKENS, TOKEN_STEP = 131_072, 1_024

DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "auto": 2}
#: Key of each limit on a micro-batch's tokens, and the one that stands for it where batches are not dynamic.
TOKEN_KEYS = {
    "update": ("actor.ppo_max_token_len_per_gpu", "actor.ppo_micro_batch_size_per_gpu"),
    "log_probs": ("rollout.log_prob_max_token_len_per_gpu", "rollout.log_prob_micro_batch_size_per_gpu"),
    "reference": ("ref.log_prob_max_token_len_per_gpu", "ref.log_prob_micro_batch_size_per_gpu"),
}
#: Copies of the logits (tokens x vocabulary, in the forward pass's dtype) at the worst moment, by what computes the
#: entropy and whether flash-attn's cross entropy is there: without gradients, with, and with a graph that is kept.
LOGITS_COPIES = {
    ("none", True): (1, 1, 2),
    ("none", False): (1, 3, 4),
    ("compiled", True): (3, 3, 3),
    ("compiled", False): (3, 3, 5),
    ("chunked", True): (2, 7, 7),
    ("chunked", False): (2, 7, 8),
    ("plain", True): (7, 13, 9),
    ("plain", False): (7, 13, 9),
}


@dataclass(frozen=True)
class Shape:
    """What a model's ``config.json`` says of its size; a decoder as Qwen2's.

    Attributes:
        hidden (int): size of a token's vector.
        layers (int): decoder layers.
        heads (int): attention heads.
        kv_heads (int): heads of keys and values.
        intermediate (int): width of the MLP.
        vocabulary (int): rows of the embedding.
        tied (bool): whether the output layer is the embedding.
        head (int | None): size of a head; None: hidden / heads.
        attention_bias (bool): whether q, k and v have a bias.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    head: int | None = None
    attention_bias: bool = True

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * (self.head or self.hidden // self.heads)

    @property
    def keys(self) -> int:
        """Width of all key heads; the values have the same."""
        return self.kv_heads * (self.head or self.hidden // self.heads)

    @property
    def layer_parameters(self) -> int:
        """Parameters of a decoder layer."""
        projections = self.hidden * (2 * self.queries + 2 * self.keys)
        bias = self.queries + 2 * self.keys if self.attention_bias else 0
        return projections + bias + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def root_parameters(self) -> int:
        """Parameters outside the layers: embedding, final norm, and the output layer where it is not the embedding."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer_parameters + self.root_parameters


#: From the models' config.json.
SHAPES = {
    "qwen2.5-1.5b": Shape(1536, 28, 12, 2, 8960, 151_936, tied=True),
    "qwen2.5-3b": Shape(2048, 36, 16, 2, 11_008, 151_936, tied=True),
}


def shape_of(model: str) -> Shape:
    """Shape of a model: of the table, a local folder, or the Hub's local cache; nothing is downloaded.

    Args:
        model (str): folder or Hub name (``actor_rollout_ref.model.path``).

    Raises:
        ValueError: if none of the three knows it, or its config lacks a size.
    """
    for name, shape in SHAPES.items():
        if Path(model).name.lower() in (name, f"{name}-instruct"):
            return shape
    file = Path(model) / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache  # costs a second

        cached = try_to_load_from_cache(model, "config.json") if model.count("/") == 1 else None
        if not isinstance(cached, str):
            raise ValueError(
                f"actor_rollout_ref.model.path is {model!r}, of which the sizes are not known; expected one of "
                f"{', '.join(SHAPES)}, a folder with a config.json, or a model in the Hub's cache"
            )
        file = Path(cached)
    config = json.loads(file.read_text())
    try:
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            head=config.get("head_dim"),
            attention_bias=config.get("attention_bias", config.get("model_type") == "qwen2"),
        )
    except KeyError as missing:
        raise ValueError(f"{file} has no {missing}; expected the config of a decoder such as Qwen2") from None


@dataclass(frozen=True)
class Settings:
    """What the estimate takes from a configuration; sizes of a number in bytes, lengths in tokens.

    Attributes:
        weight_bytes (int): of the sharded parameters, and with them of gradients and Adam's moments.
        compute_bytes (int): of gathered parameters and activations.
        reduce_bytes (int): of gradients while they are reduced.
        shard_over (int): GPUs that share one copy; -1 for all.
        param_offload (bool): the actor's parameters leave the GPU between its phases.
        optimizer_offload (bool): so do Adam's moments.
        cpu_policy (bool): parameters, gradients and moments are on the host (``offload_policy``).
        defer_sync (bool): whole gradients are kept until the last micro-batch.
        checkpointing (bool): gradient checkpointing.
        fused (bool): verl's fused kernels, which never hold all logits.
        extra_logits (int): further copies of the logits: a temperature that is not 1, padding.
        entropy (str): ``compiled``, ``chunked`` or ``plain``, how it is computed.
        entropy_in_update (bool): whether the update computes it.
        sequence_parallel (int): Ulysses.
        tokens (Mapping[str, int]): of a micro-batch, by :data:`TOKEN_KEYS`; no ``reference`` without a KL term.
        dynamic (bool): whether ``tokens`` are limits, or follow from numbers of rows.
        longest (int): tokens of prompt and response.
        objectives (int): policy gradients that the method computes; 0 for most.
        gradient_layers (int | None): layers that they are of; None for all parameters.
        share (float): of the GPU's memory, which vLLM takes while it generates.
        sleeps (bool): whether vLLM frees weights and KV cache while the actor works.
        vllm_bytes (int): of a number in vLLM.
        tensor_parallel (int): of vLLM.
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
    fused: bool
    extra_logits: int
    entropy: str
    entropy_in_update: bool
    sequence_parallel: int
    tokens: Mapping[str, int]
    dynamic: bool
    longest: int
    objectives: int
    gradient_layers: int | None
    share: float
    sleeps: bool
    vllm_bytes: int
    tensor_parallel: int


def read_settings(config: DictConfig) -> Settings:
    """Take from a composed configuration what the estimate needs.

    Raises:
        ValueError: for what it does not cover: another engine than FSDP2, LoRA, another rollout than vLLM.
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
            raise ValueError(f"actor_rollout_ref.{key} is {value!r}; the estimate of memory covers {allowed!r} only")
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
        sequence_parallel=fsdp.ulysses_sequence_parallel_size,
        tokens={name: _tokens(parts, name, actor.use_dynamic_bsz, longest) for name in names},
        dynamic=actor.use_dynamic_bsz,
        longest=longest,
        objectives=len(config.saw.objectives) if get_method(config.saw.method).needs_gradients(options) else 0,
        gradient_layers=len(options.gradient.layers) if options.gradient.layers else None,
        share=rollout.gpu_memory_utilization,
        sleeps=rollout.free_cache_engine and rollout.get("enable_sleep_mode", True),
        vllm_bytes=_bytes_of("rollout.dtype", rollout.dtype),
        tensor_parallel=rollout.tensor_model_parallel_size,
    )


def _bytes_of(key: str, dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"actor_rollout_ref.{key} is {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def _tokens(parts: DictConfig, name: str, dynamic: bool, longest: int) -> int:
    """Most tokens of a micro-batch. verl never exceeds the limit of a dynamic batch, and refuses a longer sequence."""
    limit, rows = TOKEN_KEYS[name]
    value = OmegaConf.select(parts, limit if dynamic else rows)
    if value is None:
        raise ValueError(f"actor_rollout_ref.{limit if dynamic else rows} is not set; expected a number")
    return value if dynamic else value * longest


@dataclass(frozen=True)
class Phase:
    """One part of a step.

    Attributes:
        name (str): for people.
        parts (Mapping[str, int]): bytes of the training process on a GPU, by what they are.
        vllm (bool): whether vLLM holds its share of the GPU.
        tokens (str | None): the key in :data:`TOKEN_KEYS` of what its activations grow with.
    """

    name: str
    parts: Mapping[str, int]
    vllm: bool = False
    tokens: str | None = None

    def total(self, gpu_bytes: float, share: float) -> float:
        """Bytes on a GPU, with the allowances."""
        tensors = sum(self.parts.values()) * (1 + FRAGMENTATION)
        return tensors + CONTEXTS + (share * gpu_bytes if self.vllm else 0)


@dataclass(frozen=True)
class Estimate:
    """What a training needs of each GPU.

    Attributes:
        settings (Settings): of the training.
        model (Shape): of the policy.
        gpus (int): all nodes'.
        flash_attn (bool): whether flash-attn is installed.
    """

    settings: Settings
    model: Shape
    gpus: int
    flash_attn: bool

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of a step, in order."""
        settings, resident = self.settings, self._resident(working=True)
        asleep: dict[str, bool] = {"vllm": not settings.sleeps}
        phases = [Phase("generation", self._resident(working=False), vllm=True)]
        if settings.objectives:
            held = resident | {"gradients": settings.objectives * self._gradients(settings.gradient_layers)}
            phases += self._training_phases("objectives' gradients", held, "update", True, 2)
        else:
            phases.append(
                Phase("log-probs", resident | self._inference("log_probs", True), tokens="log_probs", **asleep)
            )
        if "reference" in settings.tokens:
            parts = resident | self._inference("reference", False)
            phases.append(Phase("reference", parts, tokens="reference", **asleep))
        held = resident | {"gradients": self._gradients(None) + self._unreduced()}
        phases += self._training_phases("update", held, "update", settings.entropy_in_update, 1)
        step = {} if settings.cpu_policy else {"working space": self._shard(settings.weight_bytes)}
        phases.append(Phase("optimiser step", resident | {"gradients": self._gradients(None)} | step, **asleep))
        return tuple(phases)

    def peak(self, gpu_bytes: float) -> Phase:
        """The phase that needs most on a GPU of this size."""
        return max(self.phases, key=lambda phase: phase.total(gpu_bytes, self.settings.share))

    @property
    def vllm_weights(self) -> int:
        """Bytes of vLLM's copy of the model."""
        return self.model.parameters * self.settings.vllm_bytes // self.settings.tensor_parallel

    @property
    def kv_bytes_of_a_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        heads_of_a_gpu = max(1, self.model.kv_heads // self.settings.tensor_parallel)
        width = self.model.keys // self.model.kv_heads * heads_of_a_gpu
        return 2 * self.model.layers * width * self.settings.vllm_bytes

    def kv_tokens(self, gpu_bytes: float) -> int:
        """Tokens that the KV cache holds; below :attr:`Settings.longest` vLLM refuses to start."""
        cache = self.settings.share * gpu_bytes - self.vllm_weights - VLLM_WORK
        return max(0, int(cache / self.kv_bytes_of_a_token))

    def _shard(self, bytes_of_a_number: int) -> int:
        over = self.settings.shard_over if self.settings.shard_over > 0 else self.gpus
        return self.model.parameters * bytes_of_a_number // min(over, self.gpus)

    def _resident(self, working: bool) -> dict[str, int]:
        """The actor's own: sharded parameters and Adam's two moments, in the parameters' dtype."""
        settings = self.settings
        weights = not settings.cpu_policy and (working or not settings.param_offload)
        moments = not settings.cpu_policy and (working or not settings.optimizer_offload)
        return {
            "weights": self._shard(settings.weight_bytes) if weights else 0,
            "Adam": self._shard(2 * settings.weight_bytes) if moments else 0,
        }

    def _gradients(self, layers: int | None) -> int:
        """This GPU's shard of the gradients, of all parameters or of some layers."""
        if self.settings.cpu_policy:
            return 0
        whole = self._shard(self.settings.weight_bytes)
        return whole if layers is None else whole * layers * self.model.layer_parameters // self.model.parameters

    def _unreduced(self) -> int:
        return self.model.parameters * self.settings.reduce_bytes if self.settings.defer_sync else 0

    def _gathered(self) -> int:
        """The root's parameters stay gathered; of the layers one computes, one is fetched, one is being copied."""
        return self.settings.compute_bytes * (self.model.root_parameters + 3 * self.model.layer_parameters)

    def _local_tokens(self, name: str) -> int:
        return self.settings.tokens[name] // self.settings.sequence_parallel

    def _logits(self, name: str, entropy: bool, column: int) -> int:
        settings, vocabulary = self.settings, self.model.vocabulary
        if settings.fused:
            return FUSED_COPIES * FUSED_CHUNK * vocabulary * 4
        copies = LOGITS_COPIES[settings.entropy if entropy else "none", self.flash_attn][column]
        return (copies + settings.extra_logits) * self._local_tokens(name) * vocabulary * settings.compute_bytes

    def _mask(self, name: str) -> int:
        """Without flash-attn, attention over packed rows takes a mask: one byte, and the same in the compute dtype."""
        return 0 if self.flash_attn else (1 + self.settings.compute_bytes) * self.settings.tokens[name] ** 2

    def _layer_bytes(self) -> int:
        """Bytes a token that a layer keeps for its backward pass."""
        model, size = self.model, self.settings.compute_bytes
        norms = 2 * (4 + 2 * size) * model.hidden  # the input in float32, normalised, and scaled
        attention = size * (2 * model.queries + 2 * model.keys) + 4 * model.heads  # q, k, v, output; the row sums
        repeated = 0 if self.flash_attn else 2 * size * (model.queries - model.keys)  # k and v, once a query head
        return norms + attention + repeated + 4 * size * model.intermediate  # gate, its activation, up, their product

    def _inference(self, name: str, entropy: bool) -> dict[str, int]:
        """A forward pass without gradients: a layer's widest moment, then the logits."""
        model, size = self.model, self.settings.compute_bytes
        widest = size * (3 * model.intermediate + 4 * model.hidden) * self._local_tokens(name)
        return {
            "gathered": self._gathered(),
            "activations": widest + self._mask(name),
            "logits": self._logits(name, entropy, 0),
        }

    def _training_phases(self, title: str, held: dict[str, int], name: str, entropy: bool, column: int) -> list[Phase]:
        """Forward and backward pass: the worst moment of the loss, and of the layers' backward pass."""
        model, size, tokens = self.model, self.settings.compute_bytes, self._local_tokens(name)
        layer = self._layer_bytes() * tokens
        kept = tokens * model.hidden * (8 + size)  # around the final norm
        kept += model.layers * (tokens * model.hidden * size if self.settings.checkpointing else layer) + self._mask(
            name
        )
        gathered = self._gathered() + size * model.root_parameters  # the output layer's gradient
        reducing = (size + 2 * self.settings.reduce_bytes) * model.layer_parameters
        working = (size * (5 * model.intermediate // 2 + model.hidden)) * tokens
        working += layer if self.settings.checkpointing else 0
        logits = {"logits": self._logits(name, entropy, column)}
        still = {"logits": self._logits(name, entropy, 0)} if column == 2 else {}  # the graph is kept
        asleep: dict[str, Any] = {"vllm": not self.settings.sleeps, "tokens": name}
        return [
            Phase(f"{title}: loss", held | {"gathered": gathered, "activations": kept} | logits, **asleep),
            Phase(
                f"{title}: layers",
                held | {"gathered": gathered + reducing, "activations": kept + working} | still,
                **asleep,
            ),
        ]


def estimate(config: DictConfig, model: Shape, gpus: int, flash_attn: bool | None = None) -> Estimate:
    """Estimate what a training needs of each GPU.

    Args:
        config (DictConfig): composed from ``configs/``.
        model (Shape): of the policy.
        gpus (int): of all nodes together.
        flash_attn (bool | None): whether flash-attn is installed where it will run; None looks here.

    Raises:
        ValueError: for a configuration that the estimate does not cover.
    """
    if gpus < 1:
        raise ValueError(f"gpus is {gpus}; expected at least 1")
    here = find_spec("flash_attn") is not None
    return Estimate(read_settings(config), model, gpus, here if flash_attn is None else flash_attn)


def fits(found: Estimate, gpu_bytes: float) -> list[str]:
    """What does not fit on GPUs of this size, each with the setting to change; empty if everything fits.

    Args:
        found (Estimate): of the training.
        gpu_bytes (float): that a program can use (:func:`usable`).
    """
    faults = []
    settings = found.settings
    if settings.dynamic:
        faults = [
            f"actor_rollout_ref.{TOKEN_KEYS[name][0]} is {limit}; expected at least {settings.longest}, a prompt with "
            "its response"
            for name, limit in settings.tokens.items()
            if limit < settings.longest
        ]
    if found.kv_tokens(gpu_bytes) < settings.longest:
        faults.append(
            f"vLLM: {settings.share * gpu_bytes / GIB:.1f} GiB are too few for {found.vllm_weights / GIB:.1f} GiB of "
            f"weights and the KV cache of {settings.longest} tokens; raise "
            f"actor_rollout_ref.rollout.gpu_memory_utilization ({settings.share})"
        )
    for phase in found.phases:
        need = phase.total(gpu_bytes, settings.share)
        if need > gpu_bytes:
            faults.append(
                f"{phase.name}: about {need / GIB:.1f} GiB, {gpu_bytes / GIB:.1f} are there; "
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
        key = TOKEN_KEYS[phase.tokens][0 if settings.dynamic else 1]
        tokens = largest_tokens(found, gpu_bytes, [phase.tokens])
        if tokens:
            limit = tokens if settings.dynamic else tokens // settings.longest
            return f"lower actor_rollout_ref.{key} to {limit}"
    return "use more GPUs, or actor_rollout_ref.actor.fsdp_config.{param,optimizer}_offload=true"


def largest_tokens(found: Estimate, gpu_bytes: float, names: Iterable[str] = TOKEN_KEYS) -> int:
    """Largest micro-batch that fits, for the given limits together.

    Args:
        found (Estimate): of the training.
        gpu_bytes (float): that a program can use.
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
    """Bytes that a program can use of a GPU sold with so many GB."""
    return gib * GIB * USABLE


def memory_of_a_gpu() -> float | None:
    """Usable bytes of this machine's smallest GPU; None without one."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        return min(usable(float(line) / 1024) for line in listed.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def table(found: Estimate, gpu_bytes: float) -> str:
    """Parts by phases, in GiB, as Markdown."""
    share = found.settings.share
    names = list(dict.fromkeys(part for phase in found.phases for part in phase.parts))
    rows = [[name, *(_gib(phase.parts.get(name, 0)) for phase in found.phases)] for name in names]
    rows.append(["vLLM", *(_gib(share * gpu_bytes if phase.vllm else 0) for phase in found.phases)])
    allowance = [FRAGMENTATION * sum(phase.parts.values()) + CONTEXTS for phase in found.phases]
    rows.append(["allowance", *map(_gib, allowance)])
    rows.append(["**all**", *(_gib(phase.total(gpu_bytes, share)) for phase in found.phases)])
    return markdown(["GiB a GPU", *(phase.name for phase in found.phases)], rows, left=1)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size else ""


def summary(found: Estimate, gpu_bytes: float) -> str:
    """The peak, the KV cache, and the largest micro-batch, in a line."""
    peak = found.peak(gpu_bytes)
    need = peak.total(gpu_bytes, found.settings.share)
    return (
        f"{'with' if found.flash_attn else 'without'} flash-attn {need / GIB:.1f} of {gpu_bytes / GIB:.1f} GiB at the "
        f"peak ({peak.name}); "
        f"KV cache of {found.kv_tokens(gpu_bytes):,} tokens; micro-batches of up to "
        f"{largest_tokens(found, gpu_bytes):,} tokens fit"
    )


def check(commands: Iterable[Sequence[str]], gpus: int) -> list[str]:
    """Print the estimate of each training on this machine's GPUs, or for 80 GB, and say what does not fit.

    Args:
        commands (Iterable[Sequence[str]]): Hydra overrides of the trainings; the first of each experiment counts.
        gpus (int): of all nodes together.
    """
    from recipes.compose import compose  # costs seconds

    here = None if "RAY_ADDRESS" in os.environ else memory_of_a_gpu()
    where = "this machine's GPUs" if here else "no GPU here; for 80 GB"
    gpu_bytes = here or usable(80)
    lines: dict[str, list[str]] = {}  # many experiments need the same
    faults: dict[str, list[str]] = {}
    for name, command in {_experiment(command): command for command in reversed(list(commands))}.items():
        config = compose(*command)
        try:
            found = estimate(config, shape_of(config.actor_rollout_ref.model.path), gpus)
            line, faults_of_it = summary(found, gpu_bytes), fits(found, gpu_bytes)
        except ValueError as reason:
            line, faults_of_it = f"no estimate: {reason}", []
        lines.setdefault(line, []).insert(0, name)
        faults[line] = faults_of_it
    for line, names in reversed(lines.items()):
        print(f"memory ({where}), {', '.join(names)}: {line}")
    return [f"memory, {', '.join(lines[line])}: {fault}" for line in reversed(lines) for fault in faults[line]]


def _experiment(command: Sequence[str]) -> str:
    return next(part.partition("=")[2] for part in command if part.startswith("experiment="))


#: What docs/memory.md shows: model, GPUs, GB of each.
DOCUMENTED = [(model, gpus, gib) for model in ("1.5b", "3b") for gpus, gib in ((4, 80), (8, 80), (4, 40))]


def document() -> list[str]:
    """The tables of docs/memory.md: results, copies of the logits, and each machine's phases."""
    from recipes.compose import compose  # costs seconds

    configs = {
        (model, method): compose(f"experiment=toolrl/{model}_{method}")
        for model in ("1.5b", "3b")
        for method in ("saw_gdpo", "gradient_gdpo")
    }

    def found(model: str, gpus: int, method: str = "saw_gdpo", flash_attn: bool = True) -> Estimate:
        return estimate(configs[model, method], shape_of(f"Qwen/Qwen2.5-{model}-Instruct"), gpus, flash_attn)

    header, rows, machines = ["GPUs", "method", "flash-attn", "peak, GiB", "largest micro-batch", "KV, tokens"], [], []
    for model, gpus, gib in DOCUMENTED:
        for method, flash_attn in itertools.product(("saw_gdpo", "gradient_gdpo"), (True, False)):
            one = found(model, gpus, method, flash_attn)
            peak = one.peak(usable(gib)).total(usable(gib), one.settings.share) / GIB
            verdict = "" if not fits(one, usable(gib)) else ", too much"
            words = [f"{model.upper()} on {gpus} x {gib} GB", method, "yes" if flash_attn else "no"]
            numbers = [
                f"{peak:.1f}{verdict}",
                f"{largest_tokens(one, usable(gib)):,}",
                f"{one.kv_tokens(usable(gib)):,}",
            ]
            rows.append(words + numbers)
        machines.append(f"### {model.upper()} on {gpus} x {gib} GB\n\n{table(found(model, gpus), usable(gib))}")
    copies = [[entropy, "yes" if flash else "no", *map(str, row)] for (entropy, flash), row in LOGITS_COPIES.items()]
    of_logits = ["entropy", "flash-attn", "no gradients", "update", "several objectives"]
    return [markdown(header, rows, left=3), markdown(of_logits, copies, left=2), *machines]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1.5b", help="1.5b, 3b, or a folder or Hub name with a config.json (1.5b)")
    parser.add_argument("--gpus", type=int, default=4, help="of all nodes together (4)")
    parser.add_argument("--gpu-memory", type=float, help="of a GPU in GB, as it is sold (this machine's, else 80)")
    parser.add_argument("--experiment", help="in configs/experiment (toolrl/MODEL_METHOD)")
    parser.add_argument("--method", default="saw_gdpo", help="of Table 1, where no experiment is named (saw_gdpo)")
    parser.add_argument("--flash-attn", action=argparse.BooleanOptionalAction, help="whether it is installed (as here)")
    parser.add_argument("--document", action="store_true", help="print the tables of docs/memory.md")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args(argv)
    if arguments.document:
        print("\n\n".join(document()))
        return
    if arguments.gpu_memory is not None and arguments.gpu_memory <= 0:
        parser.error(f"--gpu-memory is {arguments.gpu_memory:g}; expected a number above 0")
    from recipes.compose import compose  # costs seconds

    known = arguments.model if arguments.model in ("1.5b", "3b") else "1.5b"
    experiment = arguments.experiment or f"toolrl/{known}_{arguments.method}"
    config = compose(f"experiment={experiment}", *arguments.overrides)
    model = f"Qwen/Qwen2.5-{arguments.model}-Instruct" if arguments.model == known else arguments.model
    gpu_bytes = usable(arguments.gpu_memory) if arguments.gpu_memory else memory_of_a_gpu() or usable(80)
    try:
        found = estimate(config, shape_of(model), arguments.gpus, arguments.flash_attn)
    except ValueError as fault:
        parser.error(str(fault))
    print(f"{experiment}, {found.model.parameters / 1e9:.2f} billion parameters, {arguments.gpus} GPUs")
    print(f"\n{table(found, gpu_bytes)}\n\n{summary(found, gpu_bytes)}")
    faults = fits(found, gpu_bytes)
    for fault in faults:
        print(f"does not fit: {fault}")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
