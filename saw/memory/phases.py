"""The phases of a step, and the memory of each on a GPU; docs/memory.md explains the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from saw.machine import fused_kernels
from saw.machine.shape import Shape
from saw.memory.settings import Settings, read_settings

GIB = 2**30
#: Allowances: guesses, neither derived nor measured. CUDA contexts of two processes, NCCL and cuBLAS buffers, and what
#: vLLM keeps while it sleeps (CUDA graphs).
CONTEXTS = 4 * GIB
#: Memory that PyTorch's allocator holds beyond the tensors, as a share of them.
FRAGMENTATION = 0.05
#: vLLM's activations and CUDA graphs, which must fit in its share of the GPU beside weights and KV cache.
VLLM_WORK = 3 * GIB
#: Tokens of a chunk in verl's fused kernels, and the float32 copies of a chunk's logits in their backward pass.
FUSED_CHUNK, FUSED_COPIES = 512, 8
#: Copies of the logits (tokens x vocabulary, in the forward pass's dtype) at the peak, by how the entropy is computed
#: and whether flash-attn is installed: without gradients, with gradients, and with the graph kept.
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
class Phase:
    """One part of a step.

    Attributes:
        name (str): for the reader.
        parts (Mapping[str, int]): part -> bytes of the training process on a GPU.
        vllm (bool): whether vLLM holds its share of the GPU.
        tokens (str | None): the key in :data:`TOKEN_KEYS` of the limit that its activations grow with.
    """

    name: str
    parts: Mapping[str, int]
    vllm: bool = False
    tokens: str | None = None

    def total(self, gpu_bytes: float, share: float) -> float:
        """Bytes on a GPU, allowances included."""
        tensors = sum(self.parts.values()) * (1 + FRAGMENTATION)
        return tensors + CONTEXTS + (share * gpu_bytes if self.vllm else 0)


@dataclass(frozen=True)
class Estimate:
    """The memory that a training needs on each GPU.

    Attributes:
        settings (Settings): of the training.
        model (Shape): of the policy.
        gpus (int): of all nodes together.
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
        asleep: dict[str, Any] = {"vllm": not settings.sleeps}
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
        """The phase that needs the most memory on a GPU of this size."""
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
        """The actor's sharded parameters and Adam's two moments, in the parameters' dtype."""
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
        """The parameters outside the layers, and three layers: one being computed, one being fetched, and a buffer."""
        return self.settings.compute_bytes * (self.model.root_parameters + 3 * self.model.layer_parameters)

    def _local_tokens(self, name: str) -> int:
        return self.settings.tokens[name] // self.settings.sequence_parallel[name]

    def _logits(self, name: str, entropy: bool, column: int) -> int:
        settings, vocabulary = self.settings, self.model.vocabulary
        if settings.fused:
            return FUSED_COPIES * FUSED_CHUNK * vocabulary * 4
        copies = LOGITS_COPIES[settings.entropy if entropy else "none", self.flash_attn][column]
        return (copies + settings.extra_logits) * self._local_tokens(name) * vocabulary * settings.compute_bytes

    def _mask(self, name: str) -> int:
        """Without flash-attn, attention over packed rows needs a mask twice: in one byte and in the compute dtype."""
        return 0 if self.flash_attn else (1 + self.settings.compute_bytes) * self.settings.tokens[name] ** 2

    def _layer_bytes(self) -> int:
        """Bytes per token that a layer keeps for its backward pass."""
        model, size = self.model, self.settings.compute_bytes
        norms = 2 * (4 + 2 * size) * model.hidden  # the input in float32, normalised, and scaled
        attention = size * (2 * model.queries + 2 * model.keys) + 4 * model.heads  # q, k, v, output; the row sums
        repeated = 0 if self.flash_attn else 2 * size * (model.queries - model.keys)  # k and v per query head
        return norms + attention + repeated + 4 * size * model.intermediate  # gate, its activation, up, their product

    def _inference(self, name: str, entropy: bool) -> dict[str, int]:
        """A forward pass without gradients: a layer's peak, then the logits."""
        model, size = self.model, self.settings.compute_bytes
        widest = size * (3 * model.intermediate + 4 * model.hidden) * self._local_tokens(name)
        return {
            "gathered": self._gathered(),
            "activations": widest + self._mask(name),
            "logits": self._logits(name, entropy, 0),
        }

    def _training_phases(self, title: str, held: dict[str, int], name: str, entropy: bool, column: int) -> list[Phase]:
        """Forward and backward pass: the peak of the loss, and of the layers' backward pass."""
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
    """Estimate the memory a training needs on each GPU.

    Args:
        config (DictConfig): composed from ``configs/``.
        model (Shape): of the policy.
        gpus (int): of all nodes together.
        flash_attn (bool | None): whether flash-attn is installed where it will run; None checks this machine.

    Raises:
        ValueError: for a configuration that the estimate does not cover.
    """
    if gpus < 1:
        raise ValueError(f"gpus is {gpus}; expected at least 1")
    here = find_spec("flash_attn") is not None
    flash_attn = here if flash_attn is None else flash_attn
    settings = read_settings(config)
    if settings.fused is None:  # as saw/verl/attention.py chooses at the start
        fault = fused_kernels.untried(config, model.model_type) or fused_kernels.impossible(config, model.tied)
        settings = replace(settings, fused=not flash_attn and fault is None)
    return Estimate(settings, model, gpus, flash_attn)
