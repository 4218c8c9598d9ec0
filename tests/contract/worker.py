"""verl's actor worker and its batches, for what ``tests/contract/ranks.py`` starts.

On a CPU, unless VERL_PLATFORM is set. Import it before anything of verl, because it sets verl's environment.
"""

import os
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "saw.verl")

import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from saw.verl import gradients


def nested(rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def actor_batch(rows: list[dict]) -> TensorDict:
    """Rows as verl's trainer passes them to its workers."""
    tokens = [row["prompt"] + row["response"] for row in rows]
    return TensorDict(
        {
            "prompts": nested([row["prompt"] for row in rows]),
            "responses": nested([row["response"] for row in rows]),
            "input_ids": nested(tokens),
            "position_ids": nested([list(range(len(row))) for row in tokens]),
            "loss_mask": nested([[0] * len(row["prompt"]) + [1] * len(row["response"]) for row in rows]),
            "response_mask": nested([[1] * len(row["response"]) for row in rows]),
        },
        batch_size=len(rows),
    )


def batch_of(rows: list[dict]) -> TensorDict:
    """As :func:`actor_batch`, with each objective's advantages."""
    data = actor_batch(rows)
    data[gradients.ADVANTAGES] = torch.tensor([row["advantages"] for row in rows])
    tu.assign_non_tensor(data, temperature=0.7, calculate_entropy=True, compute_loss=False)
    return data


def make_worker(path: str, micro_batch: int, *, model: dict[str, Any], engine: dict[str, Any]) -> TrainingWorker:
    """verl's worker under FSDP2, as the pipeline builds it.

    Args:
        path (str): of the model.
        micro_batch (int): rows.
        model (dict[str, Any]): further settings of verl's HFModelConfig.
        engine (dict[str, Any]): of its FSDPEngineConfig, whose own defaults are those of a GPU.
    """
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(path=path, load_tokenizer=False, **model),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                use_torch_compile=False,
                micro_batch_size_per_gpu=micro_batch,
                infer_micro_batch_size_per_gpu=micro_batch,
                **engine,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker
