"""The policy gradient of each objective, from the actor's workers, for the gradient-based methods.

The trainer puts the advantages of each objective into the batch. The workers compute the old log-probabilities, as in
every method, but keep the graph, so one forward pass serves both; then one backward pass per objective follows. At this
point the policy is still the one that sampled: its ratio is 1, so this is the gradient of the unclipped PPO loss. No
gradient leaves its rank: only the K x K matrix of inner products is summed over the ranks.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.utils.tensordict_utils import maybe_fix_3d_position_ids
from verl.workers.engine.utils import postprocess_batch_func, prepare_micro_batches
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding

from saw.verl.config import ConfigError

#: The batch's field with each objective's advantages, shape ``(R, K)``.
ADVANTAGES = "saw_objective_advantages"
#: The batch's field that requests gradients; its value is a tuple of layers, empty for all.
LAYERS = "saw_gradient_layers"
#: Whether the gradient is of the ``mean`` or the ``sum`` (:class:`saw.method.options.GradientOptions`).
REDUCTION = "saw_gradient_reduction"

Gradients = dict[nn.Parameter, Tensor]


@dataclass(frozen=True)
class ObjectiveGradients:
    """One step's gradients, as the workers report them.

    Attributes:
        gram (Tensor): shape ``(K, K)``, float64, inner products over the chosen parameters of all ranks.
        forward_seconds (float): of this rank; every method spends these on the old log-probabilities.
        backward_seconds (float): of this rank, the extra cost of the gradients.
    """

    gram: Tensor
    forward_seconds: float
    backward_seconds: float


class GradientWorker(ActorRolloutRefWorker):
    """verl's worker, which also computes gradients with the log-probabilities if the batch asks for them."""

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        """As verl's; with :data:`LAYERS` in the batch, it also computes the gradients."""
        without_adapter = tu.get_non_tensor_data(data, "no_lora_adapter", False)  # the reference policy under LoRA
        if without_adapter or tu.get_non_tensor_data(data, LAYERS, None) is None:
            return super().compute_log_prob(data)
        assert self.actor is not None
        actor = self.config.actor
        reduction = tu.get_non_tensor_data(data, REDUCTION, "mean")
        losses = ObjectiveLosses(actor.loss_agg_mode, actor.loss_scale_factor, reduction)
        output, self._gradients = log_probs_and_gradients(self.actor, data, losses)
        return output.cpu() if output is not None else None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def objective_gradients(self) -> ObjectiveGradients:
        """The gradients of the last :meth:`compute_log_prob`."""
        return self._gradients


class ObjectiveLosses:
    r"""The policy-gradient loss of each objective, :math:`-\sum A_k \log\pi` in verl's own aggregation.

    verl calls it as a loss function; the losses stay here, with their graph, until :meth:`take`.

    Args:
        loss_agg_mode (str): verl's ``actor.loss_agg_mode``.
        loss_scale_factor (int | None): verl's ``actor.loss_scale_factor``.
        reduction (str): ``mean`` divides by the size of the whole batch, so that the micro-batches add up to its loss;
            ``sum`` by the size of the micro-batch.
    """

    def __init__(self, loss_agg_mode: str, loss_scale_factor: int | None = None, reduction: str = "mean"):
        self._loss_agg_mode, self._loss_scale_factor = loss_agg_mode, loss_scale_factor
        self._reduction = reduction
        self._losses: list[Tensor] = []

    def __call__(self, model_output: Mapping[str, Tensor], data: TensorDict, dp_group: object = None):
        """verl's signature; the returned sum is not used."""
        log_probs = no_padding_2_padding(model_output["log_probs"], data)
        mask = data.select("response_mask").to_padded_tensor()["response_mask"].to(bool)
        self._losses = [
            agg_loss(
                loss_mat=-advantages[:, None] * log_probs,
                loss_mask=mask,
                loss_agg_mode=self._loss_agg_mode,
                **self._divisors(mask, data),
                loss_scale_factor=self._loss_scale_factor,
            )
            for advantages in dense(data[ADVANTAGES]).to(log_probs).unbind(dim=1)
        ]
        return torch.stack(self._losses).detach().sum(), {}

    def _divisors(self, mask: Tensor, data: TensorDict) -> dict[str, Any]:
        """The divisors for ``agg_loss``; ``dp_size`` compensates for FSDP's average over the ranks."""
        if self._reduction == "mean":
            return {name: data[name] for name in ("dp_size", "batch_num_tokens", "global_batch_size")}
        lengths = mask.sum(dim=1)
        return {
            "dp_size": 1,
            "batch_num_tokens": lengths.sum().clamp(min=1),
            "global_batch_size": (lengths > 0).sum().clamp(min=1),
        }

    def take(self) -> list[Tensor]:
        """Hand over the K losses of the last call, so that their graph can be freed."""
        losses, self._losses = self._losses, []
        return losses


def log_probs_and_gradients(
    worker: TrainingWorker, data: TensorDict, losses: ObjectiveLosses
) -> tuple[TensorDict | None, ObjectiveGradients]:
    """Log-probabilities and entropies, as from verl's ``infer_batch``, and the Gram matrix of the gradients.

    Follows ``forward_backward_batch`` of verl 0.9.1's FSDP engine, which makes only one backward pass per micro-batch.

    Args:
        worker (TrainingWorker): the actor's, under FSDP2.
        data (TensorDict): this rank's rows, with :data:`ADVANTAGES` and :data:`LAYERS`.
        losses (ObjectiveLosses): the loss of each objective.

    Raises:
        ConfigError: if no parameter belongs to the chosen layers, or the training uses loss scaling.
    """
    engine: Any = worker.engine  # verl's base class does not declare the FSDP engine's attributes
    if getattr(engine, "scaler", None) is not None:
        raise ConfigError(
            "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype is float16, which needs loss scaling; "
            "the objectives' policy gradients do not support it: set it to bfloat16 or float32"
        )
    layers = tu.get_non_tensor_data(data, LAYERS, ())
    micro_batches, indices = _micro_batches(worker, data)
    gradients: list[Gradients] = [{} for _ in range(dense(data[ADVANTAGES]).shape[1])]
    outputs: list[dict] = []
    forward_seconds = backward_seconds = 0.0
    with engine.train_mode():
        chosen = chosen_parameters(engine.module, layers)
        for micro_batch in micro_batches:
            started = _now()
            with _leaves(engine.module, layers) as leaves:
                _, output = engine.forward_step(micro_batch, loss_function=losses, forward_only=False)
            outputs.append(output)
            forward_seconds += _now() - started
            started = _now()
            _backward(losses.take(), leaves, chosen, gradients)
            backward_seconds += _now() - started
        gram = gram_matrix(gradients)
    found = ObjectiveGradients(gram.cpu(), forward_seconds, backward_seconds)
    if not engine.is_mp_src_rank_with_outputs():
        return None, found
    output = postprocess_batch_func(output_lst=outputs, indices=indices, data=data)
    return worker._postprocess_output(
        output, global_token_num=None, delta_time=1.0, forward_only=True, images_seqlens=None
    ), found


def _micro_batches(worker: TrainingWorker, data: TensorDict) -> tuple[list[TensorDict], Any]:
    """Split the batch as verl would before a backward pass: the micro-batches, and their rows' places in the batch."""
    engine: Any = worker.engine
    config = worker.engine_config
    maybe_fix_3d_position_ids(data)
    tokens = data["loss_mask"].sum().to(worker.device_name)
    group = engine.get_data_parallel_group()
    torch.distributed.all_reduce(tokens, group=group)
    tu.assign_non_tensor(
        data,
        use_remove_padding=worker.model_config.get("use_remove_padding", False),
        use_dynamic_bsz=config.use_dynamic_bsz,
        max_token_len_per_gpu=config.max_token_len_per_gpu,
        micro_batch_size_per_gpu=config.micro_batch_size_per_gpu,
        use_fused_kernels=config.use_fused_kernels,
        sp_size=engine.ulysses_sequence_parallel_size,
        batch_num_tokens=tokens.item(),
        dp_size=engine.get_data_parallel_size(),
        global_batch_size=len(data) * engine.get_data_parallel_size(),
    )
    return prepare_micro_batches(data, dp_group=group, same_micro_num_in_dp=True)


def chosen_parameters(module: nn.Module, layers: Sequence[int]) -> list[nn.Parameter]:
    """The trainable parameters whose gradients are compared.

    Args:
        module (nn.Module): the model.
        layers (Sequence[int]): numbers of its decoder layers, as in transformers' names ``layers.<number>.``; empty
            for all parameters.

    Raises:
        ConfigError: if one of the layers has no trainable parameter.
    """
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not layers:
        return list(trainable.values())
    of_layer: dict[int, list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        if (number := _layer(name)) is not None:
            of_layer.setdefault(number, []).append(parameter)
    for number in layers:
        if number not in of_layer:
            raise ConfigError(
                f"saw.options.gradient.layers has {number}, which is not a trainable layer of the model; "
                f"it has {min(of_layer, default=None)} to {max(of_layer, default=None)}"
            )
    return [parameter for number in sorted(set(layers)) for parameter in of_layer[number]]


def _layer(name: str) -> int | None:
    """The number of the decoder layer that a module or a parameter belongs to."""
    found = re.search(r"(?:^|\.)layers\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None


@contextmanager
def _leaves(module: nn.Module, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect the tensors that a backward pass must reach, during a forward pass in this context; empty for all.

    While a module's forward pass runs, FSDP2 replaces its parameters by the gathered ones, the leaves of the graph.
    """
    leaves: list[Tensor] = []
    with ExitStack() as stack:
        for name, part in module.named_modules():
            if _layer(name) in layers and any(True for _ in part.parameters(recurse=False)):
                hook = part.register_forward_pre_hook(
                    lambda part, _: leaves.extend(p for p in part.parameters(recurse=False) if p.requires_grad)
                )
                stack.callback(hook.remove)
        yield leaves


def _backward(
    losses: Sequence[Tensor], leaves: Sequence[Tensor], chosen: Sequence[nn.Parameter], gradients: Sequence[Gradients]
) -> None:
    """One backward pass per loss, each adding to its own gradients instead of ``parameter.grad``, where FSDP2 adds."""
    for k, (loss, gradient) in enumerate(zip(losses, gradients, strict=True)):
        for parameter in chosen:
            parameter.grad = gradient.get(parameter)
        loss.backward(retain_graph=k < len(losses) - 1, inputs=list(leaves) or None)
        for parameter in chosen:
            if parameter.grad is not None:
                gradient[parameter], parameter.grad = parameter.grad, None


@torch.no_grad()
def gram_matrix(gradients: Sequence[Gradients]) -> Tensor:
    """Inner products of the gradients over all parameters and ranks.

    Each rank multiplies its shards; replicated shards count once. Products and sums are in float64.

    Args:
        gradients (Sequence[Gradients]): K of them, this rank's.

    Returns:
        Tensor: shape ``(K, K)``, float64, the same on every rank.
    """
    size = len(gradients)
    device = next(iter(gradients[0])).device
    gram = torch.zeros(size, size, dtype=torch.float64, device=device)
    for k in range(size):
        for other in range(k + 1):
            for parameter in gradients[k].keys() & gradients[other].keys():
                product = _local(gradients[k][parameter]) * _local(gradients[other][parameter])
                gram[k, other] += product.sum(dtype=torch.float64) / _copies(gradients[k][parameter])
    gram = gram + gram.tril(-1).T
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(gram)
    return gram


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _copies(gradient: Tensor) -> int:
    """How many ranks hold the same shard of a gradient."""
    if not isinstance(gradient, DTensor):
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    sizes = zip(gradient.placements, gradient.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement.is_replicate())


def dense(advantages: Tensor) -> Tensor:
    """Rows from TransferQueue, as one ``(R, K)`` tensor."""
    return advantages.to_padded_tensor(0.0) if advantages.is_nested else advantages


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
