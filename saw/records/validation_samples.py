"""Sample answers from a validation with their rewards, for a person to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig


def log(
    trainer: DictConfig,
    step: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
    infos: Mapping[str, Sequence[float | None]],
    names: Sequence[str],
) -> None:
    """Write ``val_samples.jsonl`` beside the checkpoints, and a table to wandb if it is among the loggers.

    Args:
        trainer (DictConfig): verl's section ``trainer``; ``log_val_generations`` is the number of samples, evenly
            spaced over the validation data, so that every validation shows the same questions.
        step (int): the training step.
        inputs (Sequence[str]): prompts.
        outputs (Sequence[str]): answers.
        infos (Mapping): rewards by name, None where missing.
        names (Sequence[str]): the objectives.
    """
    number = min(trainer.log_val_generations, len(inputs))
    if number < 1:
        return
    order = sorted(range(len(inputs)), key=lambda row: inputs[row])  # rollouts come back in any order
    rows = [order[len(inputs) * i // number] for i in range(number)]
    path = Path(trainer.default_local_dir) / "val_samples.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    is_cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        if is_cut:  # a killed run left half a line
            file.write("\n")
        for row in rows:
            rewards = {name: infos[name][row] for name in names}
            line = {"step": step, "input": inputs[row], "output": outputs[row], "rewards": rewards}
            file.write(json.dumps(line) + "\n")
    if "wandb" in trainer.logger:
        import wandb

        data = [[step, inputs[row], outputs[row], *(infos[name][row] for name in names)] for row in rows]
        wandb.log({"saw-val/samples": wandb.Table(columns=["step", "input", "output", *names], data=data)}, step=step)
