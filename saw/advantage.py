"""The advantage of every response token from several rewards: the public function of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saw.aggregation import normalise
from saw.batch import Groups, check_shapes, make_batch, token_mask
from saw.methods import check_combination, get_method
from saw.options import Options
from saw.stability import steady
from saw.statistics import ObjectiveStatistics, objective_statistics
from saw.weighting import Context


@dataclass(frozen=True)
class Advantage:
    """What :func:`compute_advantage` returns.

    Attributes:
        tokens (Tensor): shape ``(N, T)``, the sample's advantage on each response token and 0 elsewhere;
            float32, or float64 if the rewards were.
        samples (Tensor): shape ``(N,)``, float64, the advantage of each sample.
        weights (Tensor): shape ``(K,)``, float64, the weight of each objective before priorities; they add up to 1.
            Where each group has weights of its own, their mean over the groups.
        proposed (Tensor): shape ``(K,)``, float64, the weights before an option steadied or replaced them.
        statistics (ObjectiveStatistics): what the weights were computed from.
    """

    tokens: Tensor
    samples: Tensor
    weights: Tensor
    proposed: Tensor
    statistics: ObjectiveStatistics


@torch.no_grad()
def compute_advantage(
    rewards: Tensor,
    groups: Groups,
    response_mask: Tensor,
    *,
    method: str,
    minima: Sequence[float] | Tensor | None = None,
    maxima: Sequence[float] | Tensor | None = None,
    priorities: Sequence[float] | Tensor | None = None,
    options: Options | Mapping[str, object] | None = None,
    names: Sequence[str] | None = None,
    penalty: Tensor | None = None,
    step: int = 0,
    previous_weights: Sequence[float] | Tensor | None = None,
    gram: Tensor | None = None,
) -> Advantage:
    """Weigh the objectives of one training step and turn their rewards into token advantages.

    Defined for every input that passes the checks, and always finite: a group of one has advantage 0
    (``"paper"``) or its own reward (``"released"``); a sample with an empty response has no tokens and counts in
    its group; a constant objective has CV and deviations 0; a constant batch has equal weights and advantages 0;
    a missing reward is left out of every statistic and adds nothing to its sample; a sample with no reward at all
    has advantage 0; an objective that is missing everywhere has weight 0 in the SAW methods.

    Args:
        rewards (Tensor): shape ``(N, K)``; NaN marks a missing value.
        groups: N ids, hashable and in any order; samples with equal ids answer the same prompt. Numbers or text, or
            anything else that is hashable; equality is Python's, and a tensor without dimensions counts as its value.
        response_mask (Tensor): shape ``(N, T)``, 1 (or True) on response tokens and 0 elsewhere; no other value, of
            any real dtype. Its device is where the work is done; what is on another device is copied there.
        method (str): a name in :data:`saw.METHODS`.
        minima (Sequence[float] | Tensor | None): shape ``(K,)``, each objective's theoretical minimum. If None,
            0 for the methods that need one, and unchecked for the others.
        maxima (Sequence[float] | Tensor | None): shape ``(K,)``, each objective's theoretical maximum, for the option
            ``informativeness="range_std"``.
        priorities (Sequence[float] | Tensor | None): shape ``(K,)``, static factors that multiply after the
            weights; 1 if None.
        options (Options | Mapping | None): see :class:`saw.Options`.
        names (Sequence[str] | None): K names, for error messages.
        penalty (Tensor | None): shape ``(N,)``, taken off the combined reward (an in-reward KL penalty); for
            methods that combine rewards before they normalise.
        step (int): the training step, for the random methods.
        previous_weights (Sequence[float] | Tensor | None): shape ``(K,)``, ``weights`` of the step before, for the
            gradient methods and the options ``ema`` and ``max_change``; None at the first step.
        gram (Tensor | None): shape ``(K, K)``, inner products of the policy gradients of
            :func:`objective_advantages`, for the gradient methods and ``informativeness="gradient_norm"``.

    Returns:
        Advantage: token advantages, weights and statistics.

    Raises:
        ValueError: for an unknown method or option, options that make no sense together, mismatched shapes, no
            rewards, an infinite reward, a reward below its minimum, a negative priority, a mask with values other
            than 0 and 1, a group id that is NaN, a number and a text among the group ids. What and where is named.
        TypeError: for inputs of the wrong type, a group id that is not hashable among them.
    """
    chosen = get_method(method)
    chosen_options = Options.of(options)
    profile = chosen_options.numerics
    check_shapes(rewards, response_mask)
    check_combination(method, chosen_options, rewards.shape[1])
    if chosen.needs_minima(chosen_options) and minima is None:
        minima = [0.0] * rewards.shape[1]
    if chosen.needs_maxima(chosen_options) and maxima is None:
        raise ValueError(f"maxima is None; informativeness={chosen_options.informativeness!r} needs them")
    if chosen.needs_gradients(chosen_options):
        _check_gradients(gram, chosen_options, method, rewards.shape[1])
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    # The mask's copy becomes the result in place: one (N, T) tensor is all the memory this takes.
    tokens, lengths = token_mask(response_mask, dtype)
    batch = make_batch(
        rewards,
        groups,
        lengths,
        minima=minima,
        maxima=maxima,
        priorities=priorities,
        names=names,
        penalty=penalty,
    )
    statistics = objective_statistics(batch, profile)
    previous = None if previous_weights is None else _check_previous(previous_weights, batch.names).to(statistics.mean)
    gram = None if gram is None else gram.to(statistics.mean)
    weights = proposed = chosen.weighting(Context(batch, statistics, chosen_options, step, previous, gram))
    if weights.ndim == 1:
        weights = steady(proposed, previous, chosen_options)
    advantages = chosen.aggregation(batch, weights, profile)
    return Advantage(
        tokens.mul_(advantages.to(dtype)[:, None]),
        advantages,
        weights if weights.ndim == 1 else weights.mean(dim=0),
        proposed if proposed.ndim == 1 else proposed.mean(dim=0),
        statistics,
    )


@torch.no_grad()
def objective_advantages(
    rewards: Tensor, groups: Groups, *, options: Options | Mapping[str, object] | None = None
) -> Tensor:
    """What each objective's advantages would be if it were the only one: its rewards, normalised within the group.

    The policy gradients that these give are what the gradient methods compare.

    Args:
        rewards (Tensor): shape ``(N, K)``; NaN marks a missing value, which has advantage 0.
        groups: N ids, as in :func:`compute_advantage`.
        options (Options | Mapping | None): of which the profile counts.

    Returns:
        Tensor: shape ``(N, K)``, float64.

    Raises:
        ValueError: as :func:`compute_advantage` for the same inputs.
    """
    check_shapes(rewards, torch.ones(len(rewards), 1))
    batch = make_batch(rewards, groups, rewards.new_ones(len(rewards), dtype=torch.float64))
    return normalise(batch, Options.of(options).numerics)


def _check_previous(weights: Sequence[float] | Tensor, names: tuple[str, ...]) -> Tensor:
    previous = torch.as_tensor(weights, dtype=torch.float64)
    if previous.shape != (len(names),) or not all(0 <= weight <= 1 for weight in previous.tolist()):
        raise ValueError(f"previous_weights is {previous.tolist()}; expected {len(names)} weights from 0 to 1")
    return previous


def _check_gradients(gram: Tensor | None, options: Options, method: str, objectives: int) -> None:
    if gram is None:
        raise ValueError(f"gram is None; {method} with {options.informativeness!r} compares policy gradients")
    if gram.shape != (objectives, objectives) or not gram.isfinite().all():
        raise ValueError(f"gram is {gram.tolist()}; expected finite numbers of shape ({objectives}, {objectives})")
    if get_method(method).ascends and options.gradient.lr is None:
        raise ValueError("options.gradient.lr is not set; outside of verl there is no learning rate to take it from")
