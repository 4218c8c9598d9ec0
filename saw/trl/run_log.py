"""What ``saw report`` reads: ``metrics.jsonl`` and ``run.json``, in the training's output folder."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from saw.records import metrics_file
from saw.records.run_info import write_record
from saw.trl.settings import Settings

#: TRL's prefix in an evaluation, and ours.
EVALUATION, VALIDATION = "eval_saw/", "saw-val/"
#: Arguments that identify a run: two runs that differ only in these are seeds of one method.
_IDENTITY = ("output_dir", "logging_dir", "run_name", "seed", "data_seed", "hub_model_id", "resume_from_checkpoint")


class RunLog(TrainerCallback):
    """Writes every log of the trainer as a line of ``metrics.jsonl``, and ``run.json`` when a training starts.

    Args:
        settings (Settings): of the method.
        model (str): name of the model.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        self.settings = settings
        self.model = model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the metrics of the steps before a resume; those of an earlier training in the folder are deleted."""
        if not state.is_world_process_zero:
            return
        metrics_file.begin(_path(args), resume=state.global_step > 0)
        write_record(
            Path(args.output_dir),
            self._config(args),
            {objective.name: objective.range for objective in self.settings.objectives},
            state.max_steps,
            command=shlex.join(["python", *sys.argv]),
            packages=("torch", "trl", "transformers", "accelerate", "vllm"),
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append a line."""
        if not state.is_world_process_zero or not logs:
            return
        data = {
            VALIDATION + name.removeprefix(EVALUATION) if name.startswith(EVALUATION) else name: value
            for name, value in logs.items()
        }
        path = _path(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "data": data}, default=float) + "\n")

    def _config(self, args: TrainingArguments) -> dict[str, Any]:
        """The configuration, with the keys that the report reads under verl's names."""
        settings = self.settings
        return {
            "saw": {
                "method": settings.method,
                "options": settings.options.model_dump(mode="json"),
                "objectives": {objective.name: asdict(objective) for objective in settings.objectives},
            },
            "data": {"seed": args.seed, "train_batch_size": args.generation_batch_size // args.num_generations},
            "actor_rollout_ref": {"rollout": {"n": args.num_generations}},
            "trl": {"model": self.model, **{k: v for k, v in args.to_dict().items() if k not in _IDENTITY}},
        }


def _path(args: TrainingArguments) -> Path:
    return Path(args.output_dir) / "metrics.jsonl"
