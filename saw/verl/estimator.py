"""The advantage estimator ``saw``, registered with verl.

verl passes an estimator token rewards and a mask. During the call, the trainer (:mod:`saw.verl.trainer`) also provides
the rewards of each objective. Everything else in verl's advantage step (KL penalty, rollout correction, writing to
TransferQueue) stays verl's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from saw.method.advantage import Advantage, compute_advantage
from saw.method.objective import Objective
from saw.verl.config import Settings
from saw.verl.transfer_queue import of_all_rows


@dataclass
class StepRewards:
    """The rewards of one step, or of one of its mini-batches. R is the number of rows of verl's batch.

    Attributes:
        settings (Settings): method, objectives, options.
        objectives (Sequence[Objective]): with their ranges at this step.
        step (int): verl's global step.
        previous_weights (Sequence[float] | None): the weights of the last step.
        memory (Mapping[str, Sequence[float]]): what the method remembers of the last step besides them.
        rewards (Tensor): shape ``(R, K)``, NaN where missing.
        scored (Tensor): int64, indices of the rows used: no padding, and only the last output of each session.
        scored_of_row (Tensor): shape ``(R,)``, int64, for each row its index in ``scored``; -1 for padding.
        lost (int): requested samples that left no row.
        scores (Tensor | None): shape ``(R,)``, the scalar rewards before a KL penalty; None if there is none.
        gram (Tensor | None): shape ``(K, K)``, of the objectives' policy gradients, if the method compares them.
        prompts (Sequence[str]): of the rows used, like ``submitted``, ``infos`` and ``scalars``.
        submitted (Sequence[int]): verl's global step at which each sample's prompt was submitted to the rollout.
        infos (Sequence[Mapping]): what the reward function returned.
        scalars (Tensor | None): verl's scalar rewards, shape ``(N,)``, one per row used.
        turns (Tensor | None): shape ``(R, T)``, the model's turn of each token, if an objective belongs to a turn.
        advantage (Advantage | None): the result, once the estimator has run.
    """

    settings: Settings
    objectives: Sequence[Objective]
    step: int
    previous_weights: Sequence[float] | None
    rewards: Tensor
    scored: Tensor
    scored_of_row: Tensor
    lost: int = 0
    memory: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scores: Tensor | None = None
    gram: Tensor | None = None
    prompts: Sequence[str] = ()
    submitted: Sequence[int] = ()
    infos: Sequence[Mapping[str, Any]] = ()
    scalars: Tensor | None = None
    turns: Tensor | None = None
    advantage: Advantage | None = None

    def missing_shares(self) -> list[float]:
        """For each objective, the share of samples without its reward; lost samples count as without."""
        present = (~self.rewards[self.scored].isnan()).sum(dim=0)
        return (1 - present.double() / max(len(self.scored) + self.lost, 1)).tolist()


_step: ContextVar[StepRewards | None] = ContextVar("saw_step", default=None)


@contextmanager
def rewards_of_step(step: StepRewards) -> Iterator[StepRewards]:
    """Let the estimator see the rewards of this step."""
    token = _step.set(step)
    try:
        yield step
    finally:
        _step.reset(token)


def estimate(
    token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, index: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Token advantages of one step by the configured method.

    Args:
        token_level_rewards (Tensor): shape ``(R, T)``; its sum over a row is the scalar score minus the KL penalty.
        response_mask (Tensor): shape ``(R, T)``.
        config: verl's ``algorithm`` section.
        index (np.ndarray): shape ``(R,)``, the prompt of each row.

    Returns:
        tuple[Tensor, Tensor]: advantages and returns, the same ``(R, T)`` tensor, as for any outcome reward.

    Raises:
        RuntimeError: outside of SAW's trainer.
    """
    step = _step.get()
    if step is None:
        raise RuntimeError("algorithm.adv_estimator=saw needs SAW's trainer; set trainer.v1.trainer_mode=saw")
    rows = step.scored
    penalty = None
    if step.scores is not None:
        penalty = (step.scores - token_level_rewards.sum(dim=-1))[rows]
    step.advantage = advantage = compute_advantage(
        step.rewards[rows],
        np.asarray(index, dtype=object)[rows.numpy()],
        response_mask[rows],
        method=step.settings.method,
        objectives=step.objectives,
        options=step.settings.options,
        penalty=penalty,
        step=step.step,
        previous_weights=step.previous_weights,
        gram=step.gram,
        memory=step.memory,
        turns=None if step.turns is None else step.turns[rows],
    )
    if len(rows) == len(response_mask) and advantage.tokens is not None:
        return advantage.tokens, advantage.tokens
    # Every output of a session gets the session's advantage; padding gets none.
    if step.turns is not None and advantage.tokens is not None:  # with turns, a session has one output
        tokens = of_all_rows(advantage.tokens, step.scored_of_row)
        return tokens, tokens
    tokens = response_mask * of_all_rows(advantage.samples, step.scored_of_row).float()[:, None]
    return tokens, tokens
