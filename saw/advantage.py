"""The advantage of every response token from several rewards: the public function of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saw.batch import Groups, check_shapes, make_batch
from saw.methods import get_method
from saw.options import Options
from saw.statistics import ObjectiveStatistics, objective_statistics


@dataclass(frozen=True)
class Advantage:
    """What :func:`compute_advantage` returns.

    Attributes:
        tokens (Tensor): shape ``(N, T)``, the sample's advantage on each response token and 0 elsewhere;
            float32, or float64 if the rewards were.
        samples (Tensor): shape ``(N,)``, float64, the advantage of each sample.
        weights (Tensor): shape ``(K,)``, float64, the weight of each objective before priorities; they add up to 1.
        statistics (ObjectiveStatistics): what the weights were computed from.
    """

    tokens: Tensor
    samples: Tensor
    weights: Tensor
    statistics: ObjectiveStatistics


@torch.no_grad()
def compute_advantage(
    rewards: Tensor,
    groups: Groups,
    response_mask: Tensor,
    *,
    method: str,
    minima: Sequence[float] | Tensor | None = None,
    priorities: Sequence[float] | Tensor | None = None,
    options: Options | Mapping[str, object] | None = None,
    names: Sequence[str] | None = None,
    penalty: Tensor | None = None,
) -> Advantage:
    """Weigh the objectives of one training step and turn their rewards into token advantages.

    Defined for every input that passes the checks, and always finite: a group of one has advantage 0
    (``"paper"``) or its own reward (``"released"``); a sample with an empty response has no tokens and counts in
    its group; a constant objective has CV and deviations 0; a constant batch has equal weights and advantages 0;
    a missing reward is left out of every statistic and adds nothing to its sample; a sample with no reward at all
    has advantage 0; an objective that is missing everywhere has weight 0 in the SAW methods.

    Args:
        rewards (Tensor): shape ``(N, K)``; NaN marks a missing value.
        groups: N ids, hashable and in any order; samples with equal ids answer the same prompt.
        response_mask (Tensor): shape ``(N, T)``, 1 on response tokens. Its device is where the work is done.
        method (str): a name in :data:`saw.METHODS`.
        minima (Sequence[float] | Tensor | None): shape ``(K,)``, each objective's theoretical minimum. If None,
            0 for the methods that need one, and unchecked for the others.
        priorities (Sequence[float] | Tensor | None): shape ``(K,)``, static factors that multiply after the
            weights; 1 if None.
        options (Options | Mapping | None): see :class:`saw.Options`.
        names (Sequence[str] | None): K names, for error messages.
        penalty (Tensor | None): shape ``(N,)``, taken off the combined reward (an in-reward KL penalty); for
            methods that combine rewards before they normalise.

    Returns:
        Advantage: token advantages, weights and statistics.

    Raises:
        ValueError: for an unknown method or option, mismatched shapes, no rewards, an infinite reward, a reward
            below its minimum, a negative priority.
        TypeError: for inputs of the wrong type.
    """
    chosen = get_method(method)
    profile = Options.of(options).numerics
    check_shapes(rewards, response_mask)
    if chosen.needs_minima and minima is None:
        minima = [0.0] * rewards.shape[1]
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    # The mask's copy becomes the result in place: one (N, T) tensor is all the memory this takes.
    tokens = response_mask.detach().to(dtype, copy=True)
    batch = make_batch(
        rewards, groups, tokens.sum(dim=-1), minima=minima, priorities=priorities, names=names, penalty=penalty
    )
    statistics = objective_statistics(batch, profile)
    weights = chosen.weighting(statistics, profile)
    advantages = chosen.aggregation(batch, weights, profile)
    return Advantage(tokens.mul_(advantages.to(dtype)[:, None]), advantages, weights, statistics)
