"""The arguments of :class:`saw.trl.SawGRPOTrainer`, checked before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from saw.method.advantage import compute_advantage
from saw.method.demands import refuse_gradients, refuse_turns
from saw.method.inputs import check_objectives
from saw.method.objective import Objective
from saw.method.options import Options


@dataclass(frozen=True)
class Settings:
    """What :func:`saw.compute_advantage` is called with.

    Attributes:
        method (str): a name in :data:`saw.METHODS`.
        objectives (tuple[Objective, ...]): one per reward function, in TRL's order.
        options (Options): of the method.
    """

    method: str
    objectives: tuple[Objective, ...]
    options: Options

    @property
    def names(self) -> list[str]:
        """The objectives' names, TRL's names of the reward functions."""
        return [objective.name for objective in self.objectives]

    @classmethod
    def of(
        cls,
        method: str,
        objectives: Sequence[Objective] | None,
        options: Options | Mapping[str, object] | None,
        *,
        functions: Sequence[str],
        reward_weights: Sequence[float] | None,
    ) -> Settings:
        """Check the arguments, and match the objectives with the reward functions.

        Args:
            method (str): a name in :data:`saw.METHODS`.
            objectives (Sequence[Objective] | None): in any order; None for functions without known ranges.
            options (Options | Mapping | None): see :class:`saw.Options`.
            functions (Sequence[str]): TRL's names of the reward functions, in order.
            reward_weights (Sequence[float] | None): TRL's argument; None if it was not given.

        Raises:
            ValueError: for an unknown method or option, a method that TRL cannot carry, two functions of one name,
                objectives that do not match the functions, or both priorities and reward weights.
        """
        chosen, names = Options.of(options), list(functions)
        refuse_gradients(method, chosen, "TRL")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"reward_funcs has several functions with the name {twice[0]!r}; give each a __name__ of its own"
            )
        ordered = _match(objectives, names)
        refuse_turns(ordered, "TRL")
        if reward_weights is not None:
            ordered = _with_priorities(ordered, reward_weights)
        settings = cls(method, ordered, chosen)
        settings._rehearse()
        return settings

    def _rehearse(self) -> None:
        """Compute advantages of two samples, so that contradictory settings fail here and not after a rollout."""
        lowest = torch.tensor([[objective.minimum or 0.0 for objective in self.objectives]] * 2, dtype=torch.float64)
        compute_advantage(
            lowest, [0, 0], torch.ones(2), method=self.method, objectives=self.objectives, options=self.options
        )


def _match(objectives: Sequence[Objective] | None, names: Sequence[str]) -> tuple[Objective, ...]:
    if objectives is None:
        return tuple(Objective(name) for name in names)
    by_name = {objective.name: objective for objective in check_objectives(objectives, len(objectives))}
    if by_name.keys() != set(names):
        raise ValueError(
            f"objectives has {', '.join(map(repr, by_name))}, and reward_funcs {', '.join(map(repr, names))}; "
            "expected one objective per function, by its __name__ (of a reward model: the last part of its path)"
        )
    return tuple(by_name[name] for name in names)


def _with_priorities(objectives: Sequence[Objective], weights: Sequence[float]) -> tuple[Objective, ...]:
    for objective in objectives:
        if objective.priority != 1.0:
            raise ValueError(
                f"args.reward_weights is {list(weights)}, and the priority of {objective.name!r} is "
                f"{objective.priority}; both multiply the weight of an objective: set one of them"
            )
    return tuple(
        replace(objective, priority=float(weight)) for objective, weight in zip(objectives, weights, strict=True)
    )
