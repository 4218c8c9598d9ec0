"""What the weighting remembers between steps; it goes into every checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from saw.verl.settings import Settings

FILE = "saw_state.json"


@dataclass
class State:
    """The state of a training.

    Attributes:
        weights (list[float] | None): what the last step used.
        minima (dict[str, float]): the lowest reward seen of each objective whose minimum is ``running``.
    """

    weights: list[float] | None = None
    minima: dict[str, float] = field(default_factory=dict)

    def see(self, rewards: Tensor, settings: Settings) -> None:
        """Take one step's rewards into the running minima.

        Args:
            rewards (Tensor): shape ``(N, K)``, NaN where missing.
            settings (Settings): says which objectives have one.
        """
        for column, objective in zip(rewards.unbind(dim=1), settings.objectives, strict=True):
            present = column[~column.isnan()]
            if objective.minimum == "running" and len(present):
                lowest = present.min().item()
                self.minima[objective.name] = min(self.minima.get(objective.name, lowest), lowest)

    def write(self, checkpoint: Path) -> None:
        """Write it into a checkpoint's folder, which need not be there yet."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / FILE).write_text(json.dumps({"weights": self.weights, "minima": self.minima}) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> State:
        """Read it from a checkpoint's folder; a checkpoint without one is of a method that remembers nothing."""
        path = checkpoint / FILE
        return cls(**json.loads(path.read_text())) if path.exists() else cls()
