"""Small trainings with TRL, for tests in one process and as a rank of ``tests/contract/ranks.py``.

python -m tests.contract.ranks RANKS trl_training MODEL_FOLDER CASES_FILE RESULTS_FOLDER
"""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import saw
from saw.trl import SawGRPOTrainer

NAMES = ("correctness", "format")
OBJECTIVES = [saw.Objective("format", minimum=0.0, maximum=4.0), saw.Objective("correctness", minimum=-3.0)]
PROMPTS = 16
GROUP = 4


def rewards_of(step: int, number: int, missing: float = 0.0) -> torch.Tensor:
    """Made-up rewards of one rank at a step, in eighths, whatever was generated: shape ``(number, 2)``.

    Every sample has one at least: before 1.6, TRL counts a sample without any as 0.
    """
    generator = torch.Generator().manual_seed(1000 * step + int(os.environ.get("RANK", 0)))
    values = torch.randint(0, 33, (number, 2), generator=generator).double() / 8 - torch.tensor([3.0, 0.0])
    values[:GROUP, 0] = 1.0  # a group without spread
    lost = torch.rand(number, 2, generator=generator) < missing
    lost[:, 1] &= ~lost[:, 0]
    return values.masked_fill(lost, math.nan)


def reward_function(column: int, missing: float = 0.0) -> Callable[..., list[float | None]]:
    """A reward function in TRL's way, which returns None where the reward is missing."""

    def function(prompts: list[str], trainer_state: Any, **_: Any) -> list[float | None]:
        values = rewards_of(trainer_state.global_step, len(prompts), missing)[:, column].tolist()
        return [None if math.isnan(value) else value for value in values]

    function.__name__ = NAMES[column]
    return function


def make_trainer(
    model: str | Path,
    folder: str | Path,
    *,
    method: str = "saw_gdpo",
    missing: float = 0.0,
    trainer: type[GRPOTrainer] = SawGRPOTrainer,
    evaluate: bool = False,
    objectives: Any = OBJECTIVES,
    options: Any = None,
    functions: Any = None,
    **arguments: Any,
) -> GRPOTrainer:
    """A trainer on a toy model, with eight samples per generation batch and rank."""
    config = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": GROUP,
        "max_completion_length": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "learning_rate": 1e-4,
        **arguments,
    }
    rows = Dataset.from_list([{"prompt": f"question {number}"} for number in range(PROMPTS)])
    own = {"method": method, "objectives": objectives, "options": options} if trainer is SawGRPOTrainer else {}
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=functions or [reward_function(column, missing) for column in range(2)],
        args=GRPOConfig(output_dir=str(folder), **config),
        train_dataset=rows,
        eval_dataset=rows.select(range(4)) if evaluate else None,
        **own,
    )


def both_advantages(
    model: str | Path, folder: str | Path, aggregation: str | None = None, **arguments: Any
) -> dict[str, Any]:
    """The advantages of each generation batch on this rank, TRL's own and ours, and the lengths.

    Args:
        model: its folder.
        folder: for the output.
        aggregation (str | None): TRL's ``multi_objective_aggregation``, which our trainer would refuse as an argument.
        **arguments: of :func:`make_trainer`.
    """
    trainer = make_trainer(model, folder, **arguments)
    if aggregation is not None:
        trainer.multi_objective_aggregation = aggregation
    found: dict[str, Any] = {"trl": [], "saw": [], "lengths": []}
    plain, ours = GRPOTrainer._generate_and_score_completions, SawGRPOTrainer._generate_and_score_completions

    def keep_trl_s(self: GRPOTrainer, inputs: Any) -> Any:
        output = plain(self, inputs)
        found["trl"].append(output["advantages"].tolist())
        return output

    def keep_ours(self: SawGRPOTrainer, inputs: Any) -> Any:
        output = ours(self, inputs)
        found["saw"].append(output["advantages"].tolist())
        found["lengths"].append(output["completion_mask"].sum(dim=1).tolist())
        return output

    with (
        patch.object(GRPOTrainer, "_generate_and_score_completions", keep_trl_s),
        patch.object(SawGRPOTrainer, "_generate_and_score_completions", keep_ours),
    ):
        trainer.train()
    found["history"] = trainer.state.log_history
    found["logged"] = list(trainer._logs["advantages"])
    return found


def main() -> None:
    """Run the cases on this rank."""
    model, cases, results = sys.argv[1:]
    rank = os.environ["RANK"]
    found = [
        both_advantages(model, Path(results) / f"case{number}", **case)
        for number, case in enumerate(json.loads(Path(cases).read_text()))
    ]
    (Path(results) / f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
