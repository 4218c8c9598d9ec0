"""Combines the mini-batches of a step.

``separate_async`` samples, computes weights and updates the policy for each mini-batch in turn, but logs once per step.
verl 0.9.1 merges the metrics of mini-batches by parts of their names, so that those of an objective called ``summary``
would be summed. Here the rewards of the step are combined, and the metrics are computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saw.method.advantage import Advantage
from saw.method.conditions import condition
from saw.method.inputs import check_objectives, make_batch
from saw.method.statistics import objective_statistics
from saw.verl.estimator import StepRewards


def together(mini_batches: Sequence[StepRewards]) -> Advantage:
    """Combine the mini-batches of a step.

    Args:
        mini_batches (Sequence[StepRewards]): with their advantages.

    Returns:
        Advantage: its statistics are of all samples. Its weights, CV and memory are means over the mini-batches,
        weighted by their numbers of samples.
    """
    advantages = [part.advantage for part in mini_batches if part.advantage is not None]
    if len(advantages) == 1:
        return advantages[0]
    # as they count: conditional rewards depend on the ranges, which may differ between mini-batches
    rewards = torch.cat([condition(part.rewards[part.scored], part.objectives) for part in mini_batches])
    prompts = [prompt for part in mini_batches for prompt in part.prompts]
    batch = make_batch(rewards, prompts, rewards.new_ones(len(rewards)), check_objectives(None, rewards.shape[1]))
    statistics = objective_statistics(batch, mini_batches[0].settings.options.numerics)
    sizes = [len(part.scored) for part in mini_batches]
    return Advantage(
        tokens=None,
        samples=torch.cat([each.samples for each in advantages]),
        weights=_mean([each.weights for each in advantages], sizes),
        proposed=_mean([each.proposed for each in advantages], sizes),
        statistics=replace(statistics, cv=_mean([each.statistics.cv for each in advantages], sizes)),
        memory={name: _mean([each.memory[name] for each in advantages], sizes) for name in advantages[0].memory},
    )


def rewards_of(mini_batches: Sequence[StepRewards]) -> Tensor:
    """The rewards of all samples of a step as returned, shape ``(N, K)``, NaN where missing."""
    return torch.cat([part.rewards[part.scored] for part in mini_batches])


def scalars_of(mini_batches: Sequence[StepRewards]) -> Tensor:
    """verl's scalar rewards of all samples of a step, shape ``(N,)``."""
    return torch.cat([part.scalars for part in mini_batches if part.scalars is not None])


def _mean(rows: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Weighted mean of rows of shape ``(K,)``, over those that have a value; NaN if none has."""
    values = torch.stack(list(rows))
    present = ~values.isnan()
    shares = torch.tensor(sizes, dtype=values.dtype)[:, None] * present
    return (values.nan_to_num() * shares).sum(dim=0) / shares.sum(dim=0)
