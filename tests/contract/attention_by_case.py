"""One rank of verl's actor under several attentions, started by ``tests/contract/ranks.py``: saves its results.

python -m tests.contract.ranks RANKS attention_by_case MODELS_FOLDER ROWS_FILE CASES_FILE RESULTS_FOLDER
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VERL_PLATFORM"] = "cpu"

from tests.contract.worker import TrainingWorker, batch_of, make_worker

# isort: split
import torch
from tensordict import TensorDict
from torch import Tensor
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

from saw.verl import gradients

#: verl's fused kernels replace it in the class.
FORWARDS = {kind: kind.forward for kind in (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)}


def worker_of(models: str, case: dict[str, Any]) -> TrainingWorker:
    """verl's worker as platform=gpu configures it, on a CPU."""
    model: dict[str, Any] = {
        "use_remove_padding": case["remove_padding"],
        "enable_gradient_checkpointing": True,
        "use_fused_kernels": case["fused"],
        "fused_kernel_options": {"impl_backend": "torch"},
        "override_config": {"attn_implementation": case["attention"]},
    }
    engine: dict[str, Any] = {
        "model_dtype": "fp32",
        "mixed_precision": {"param_dtype": case["precision"], "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        "use_dynamic_bsz": case["dynamic"],
        "max_token_len_per_gpu": 16,
        "infer_max_token_len_per_gpu": 16,
    }
    return make_worker(f"{models}/{case['model']}", 4, model=model, engine=engine)


def loss_of(model_output: dict[str, Tensor], data: TensorDict, dp_group: object = None) -> tuple[Tensor, dict]:
    """A policy-gradient loss and an entropy bonus, over the responses."""
    log_probs = no_padding_2_padding(model_output["log_probs"], data)
    entropy = no_padding_2_padding(model_output["entropy"], data)
    mask = data.select("response_mask").to_padded_tensor()["response_mask"]
    advantages = data[gradients.ADVANTAGES][:, :1]
    return -((advantages * log_probs + 0.1 * entropy) * mask).sum(), {}


def full_gradients(worker: TrainingWorker, data: TensorDict) -> dict[str, Tensor]:
    """Gradients of one training step, before the optimiser step."""
    config = worker.engine_config
    tu.assign_non_tensor(
        data,
        use_remove_padding=worker.model_config.use_remove_padding,
        use_fused_kernels=config.use_fused_kernels,
        use_dynamic_bsz=config.use_dynamic_bsz,
        max_token_len_per_gpu=config.max_token_len_per_gpu,
        micro_batch_size_per_gpu=config.micro_batch_size_per_gpu,
    )
    with worker.engine.train_mode():
        worker.engine.forward_backward_batch(data, loss_of)
        named = worker.engine.module.named_parameters()
        return {name: p.grad.full_tensor().clone() for name, p in named if p.grad is not None}


def by_itself(row: dict) -> TensorDict:
    """A batch of one row."""
    data = batch_of([row])
    tu.assign_non_tensor(data, micro_batch_size_per_gpu=1)
    return data


def run_together(rows: list[dict]) -> TensorDict:
    """A batch whose positions continue from row to row, as if all rows were one."""
    data = batch_of(rows)
    ids = data["input_ids"]
    positions = torch.arange(ids.values().shape[0])
    data["position_ids"] = torch.nested.nested_tensor_from_jagged(positions, ids.offsets())
    return data


def gram(worker: TrainingWorker, rows: list[dict], layers: tuple[int, ...]) -> Tensor:
    """Inner products of the objectives' gradients."""
    data = batch_of(rows)
    tu.assign_non_tensor(data, **{gradients.LAYERS: layers})
    return gradients.log_probs_and_gradients(worker, data, gradients.ObjectiveLosses("token-mean"))[1].gram


def rows_of(nested: Tensor) -> list[Tensor]:
    """The predictions for each row's own tokens: the last entry predicts the next row's first token."""
    return [row[:-1].float() for row in nested.unbind()]


def find(worker: TrainingWorker, rows: list[dict]) -> dict[str, Any]:
    """The worker's results for this rank's rows."""
    together = worker.infer_batch(batch_of(rows))
    return {
        "dtype": str(together["log_probs"].dtype),
        "log_probs": rows_of(together["log_probs"]),
        "entropy": rows_of(together["entropy"]),
        "alone": [rows_of(worker.infer_batch(by_itself(row))["log_probs"])[0] for row in rows],
        "run_together": rows_of(worker.infer_batch(run_together(rows))["log_probs"]),
        "gram": gram(worker, rows, ()),
        "gram_of_layers": gram(worker, rows, (0, 2)),
        "gradients": full_gradients(worker, batch_of(rows)),
    }


def main() -> None:
    """Run the cases; those expected to fail come last."""
    models, rows_file, cases_file, results = sys.argv[1:]
    rows, cases = json.loads(Path(rows_file).read_text()), json.loads(Path(cases_file).read_text())
    found = []
    for case in cases:
        for kind, forward in FORWARDS.items():
            kind.forward = forward
        worker = worker_of(models, case)
        try:
            found.append(find(worker, rows[worker.rank :: worker.world_size]))
        except RuntimeError as error:
            found.append({"error": str(error)})
    torch.save(found, Path(results, f"rank{worker.rank}.pt"))
