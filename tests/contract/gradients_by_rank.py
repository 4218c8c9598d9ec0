"""One rank of verl's actor, started by ``torch.distributed.run``: writes what it finds as JSON.

python gradients_by_rank.py MODEL_FOLDER ROWS_FILE CASES_FILE RESULTS_FOLDER

On a CPU, unless VERL_PLATFORM says otherwise. vLLM is not needed.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "saw.verl")

import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine_workers import TrainingWorker

from saw.verl import gradients


def nested(rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def batch_of(rows: list[dict]) -> TensorDict:
    """Rows as verl's trainer hands them to its workers."""
    tokens = [row["prompt"] + row["response"] for row in rows]
    data = TensorDict(
        {
            "prompts": nested([row["prompt"] for row in rows]),
            "responses": nested([row["response"] for row in rows]),
            "input_ids": nested(tokens),
            "position_ids": nested([list(range(len(row))) for row in tokens]),
            "loss_mask": nested([[0] * len(row["prompt"]) + [1] * len(row["response"]) for row in rows]),
            "response_mask": nested([[1] * len(row["response"]) for row in rows]),
            gradients.ADVANTAGES: torch.tensor([row["advantages"] for row in rows]),
        },
        batch_size=len(rows),
    )
    tu.assign_non_tensor(data, temperature=0.7, calculate_entropy=True, compute_loss=False)
    return data


def make_worker(
    model: str,
    micro_batch: int,
    checkpointing: bool,
    *,
    attention: str = "sdpa",
    remove_padding: bool = False,
    precision: str = "fp32",
) -> TrainingWorker:
    """verl's worker as the pipeline builds it; by default as on a CPU."""
    mixed_precision = {"param_dtype": precision, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=model,
                load_tokenizer=False,
                use_remove_padding=remove_padding,
                enable_gradient_checkpointing=checkpointing,
                override_config={"attn_implementation": attention},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                model_dtype="fp32",
                dtype={"fp32": "float32", "bf16": "bfloat16"}[precision],
                use_torch_compile=False,
                mixed_precision=mixed_precision,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=micro_batch,
                infer_micro_batch_size_per_gpu=micro_batch,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker


def find(worker: TrainingWorker, rows: list[dict], layers: list[int], reduction: str) -> dict:
    """What the worker says of this rank's rows."""
    mine = batch_of(rows[worker.rank :: worker.world_size])
    tu.assign_non_tensor(mine, **{gradients.LAYERS: tuple(layers)})
    plain = worker.infer_batch(mine.copy())
    output, found = gradients.log_probs_and_gradients(
        worker, mine, gradients.ObjectiveLosses("token-mean", reduction=reduction)
    )
    device = output["log_probs"].device.type
    drift = (output["log_probs"].cpu().values() - plain["log_probs"].values()).abs().max().item()
    left = [name for name, parameter in worker.engine.module.named_parameters() if parameter.grad is not None]
    return {"gram": found.gram.tolist(), "drift": drift, "left": left, "device": device}


def main() -> None:
    """Go through the cases."""
    model, rows_file, cases_file, results = sys.argv[1:]
    rows, cases = json.loads(Path(rows_file).read_text()), json.loads(Path(cases_file).read_text())
    for case in cases:
        worker = make_worker(model, case["micro_batch"], case["checkpointing"], **case.get("engine", {}))
        case["found"] = find(worker, rows, case["layers"], case["reduction"])
    Path(results, f"rank{worker.rank}.json").write_text(json.dumps(cases))


if __name__ == "__main__":
    main()
