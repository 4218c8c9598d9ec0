"""The state of the weighting between steps; saved in every checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from saw.verl.config import Settings

FILE = "saw_state.json"


@dataclass
class State:
    """The state of a training.

    Attributes:
        objectives (list[str] | None): the objectives' names, to which weights and Gram matrices belong in this order.
        weights (list[float] | None): the weights of the last step.
        memory (dict[str, list[float]]): what the method remembers besides them, such as multipliers; K numbers each.
        minima (dict[str, float]): the lowest reward so far of each objective whose minimum is ``running``.
        grams (list[list[list[float]]]): inner products of the objectives' gradients, ``(K, K)`` each, of the steps
            since a gradient method last updated its weights.
        rollouts (dict[str, int]): the number of samples requested per prompt in flight of an asynchronous training, if
            that differs between prompts.
    """

    objectives: list[str] | None = None
    weights: list[float] | None = None
    memory: dict[str, list[float]] = field(default_factory=dict)
    minima: dict[str, float] = field(default_factory=dict)
    grams: list[list[list[float]]] = field(default_factory=list)
    rollouts: dict[str, int] = field(default_factory=dict)

    def track_minima(self, rewards: Tensor, settings: Settings) -> None:
        """Update the running minima with one step's rewards.

        Args:
            rewards (Tensor): shape ``(N, K)``, NaN where missing.
            settings (Settings): states which objectives have a running minimum.
        """
        for column, objective in zip(rewards.unbind(dim=1), settings.objectives, strict=True):
            present = column[~column.isnan()]
            if objective.minimum == "running" and len(present):
                lowest = present.min().item()
                self.minima[objective.name] = min(self.minima.get(objective.name, lowest), lowest)

    def accumulate(self, gram: Tensor, steps: int, step: int) -> Tensor:
        """Add one step's Gram matrix.

        Args:
            gram (Tensor): shape ``(K, K)``.
            steps (int): number of steps between updates of the weights.
            step (int): the current step; the weights are updated if it is a multiple of ``steps``.

        Returns:
            Tensor: shape ``(K, K)``, the mean since the last update of the weights.
        """
        self.grams.append(gram.tolist())
        mean = torch.tensor(self.grams, dtype=torch.float64).mean(dim=0)
        if step % steps == 0:
            self.grams = []
        return mean

    def write(self, checkpoint: Path) -> None:
        """Write the state into a checkpoint's folder, which need not exist yet."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / FILE).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> State:
        """Read the state from a checkpoint's folder; a checkpoint without the file is of a method without state."""
        path = checkpoint / FILE
        return cls(**json.loads(path.read_text())) if path.exists() else cls()
