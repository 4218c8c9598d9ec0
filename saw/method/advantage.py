"""The advantage of every response token from several rewards: the public function of the package."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from saw.method.aggregation import normalise
from saw.method.conditions import condition
from saw.method.context import Context
from saw.method.groups import Groups
from saw.method.inputs import check_lengths, check_objectives, check_shapes, make_batch, token_mask
from saw.method.objective import Objective
from saw.method.options import Options
from saw.method.registry import Method, Need, check_combination, check_priorities, get_method
from saw.method.returned import ROUNDING, check_advantages, check_memory, check_weights
from saw.method.smoothing import smooth
from saw.method.statistics import ObjectiveStatistics, objective_statistics
from saw.method.turns import check_method, check_turns, check_values, names_turns, token_advantages


@dataclass(frozen=True)
class Advantage:
    """The result of :func:`compute_advantage`.

    Attributes:
        tokens (Tensor | None): shape ``(N, T)``, the sample's advantage on each response token and 0 elsewhere;
            float32, or float64 if the rewards were. None where lengths were given instead of a mask.
        samples (Tensor): shape ``(N,)``, float64, the advantage of each sample; with objectives of a turn, the mean
            over its response tokens.
        weights (Tensor): shape ``(K,)``, float64, the weight of each objective before priorities; they sum to 1.
            With weights per group, their mean over the groups.
        proposed (Tensor): shape ``(K,)``, float64, the weights before smoothing or ``log_only``.
        statistics (ObjectiveStatistics): the statistics behind the weights, of conditional rewards as they count.
        memory (dict[str, Tensor]): what the method wants back at the next step besides its weights, shape ``(K,)``,
            float64, each; empty for most methods.
    """

    tokens: Tensor | None
    samples: Tensor
    weights: Tensor
    proposed: Tensor
    statistics: ObjectiveStatistics
    memory: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def compute_advantage(
    rewards: Tensor,
    groups: Groups,
    responses: Tensor,
    *,
    method: str,
    objectives: Sequence[Objective] | None = None,
    options: Options | Mapping[str, object] | None = None,
    penalty: Tensor | None = None,
    step: int = 0,
    previous_weights: Sequence[float] | Tensor | None = None,
    gram: Tensor | None = None,
    memory: Mapping[str, Sequence[float] | Tensor] | None = None,
    turns: Tensor | None = None,
) -> Advantage:
    """Weight the objectives of one training step and turn their rewards into token advantages.

    The result is finite for every input that passes the checks. A group of one has advantage 0 or its own reward,
    depending on the profile. A sample with an empty response has no tokens but counts in its group. A
    constant objective has CV and deviations 0; a constant batch has equal weights and advantages 0. A missing
    reward is left out of every statistic and contributes nothing to its sample; a sample without any reward has
    advantage 0. An objective that is missing for all samples has weight 0 in the SAW methods.

    Args:
        rewards (Tensor): shape ``(N, K)``; NaN marks a missing value.
        groups: N ids, hashable and in any order; samples with equal ids answer the same prompt. Ids are compared with
            Python's ``==``; a tensor without dimensions counts as its value.
        responses (Tensor): the response mask, shape ``(N, T)``, of any real dtype, 1 (or True) on response tokens and 0
            elsewhere. If you have no mask, the number of response tokens of each sample, shape ``(N,)``; then
            :attr:`Advantage.samples` is the result. Everything is computed on its device; other tensors are copied
            there.
        method (str): a name in :data:`saw.METHODS`.
        objectives (Sequence[Objective] | None): K of them, with names, ranges and priorities. An unknown minimum
            defaults to 0 in the methods that need one, and is not checked in the others.
        options (Options | Mapping | None): see :class:`saw.Options`.
        penalty (Tensor | None): shape ``(N,)``, subtracted from the combined reward (an in-reward KL penalty); only
            for methods that combine rewards before they normalise.
        step (int): the training step; used by the random and the gradient methods.
        previous_weights (Sequence[float] | Tensor | None): shape ``(K,)``, ``weights`` of the previous step, for the
            gradient methods and the options ``ema`` and ``max_change``; None at the first step.
        gram (Tensor | None): shape ``(K, K)``, inner products of the policy gradients of
            :func:`objective_advantages`, for the gradient methods and ``informativeness="gradient_norm"``.
        memory (Mapping | None): :attr:`Advantage.memory` of the previous step; None or empty at the first step, and for
            methods without one.
        turns (Tensor | None): shape ``(N, T)``, the model's turn of each token, from 1, and 0 outside of the response
            (:func:`saw.turns_of`); only read if an objective belongs to a turn.

    Returns:
        Advantage: token advantages, weights and statistics.

    Raises:
        ValueError: for an unknown method or option, contradictory options, mismatched shapes, no rewards, an infinite
            reward, a reward below its minimum, a mask with values other than 0 and 1, a group id that is NaN, or group
            ids that mix numbers and text, an objective of a turn in a method that sums rewards first, or its reward in
            a sample without that turn. The message names the input, the sample and the value. For a method of your
            own: if its weights are not finite, negative, do not sum to 1 or have a wrong shape.
        TypeError: for inputs of the wrong type, including a group id that is not hashable.
    """
    chosen = get_method(method)
    chosen_options = Options.of(options)
    profile = chosen_options.numerics
    check_shapes(rewards, responses)
    step = _check_step(step)
    for name, value in (("penalty", penalty), ("gram", gram)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
    objectives = check_objectives(objectives, rewards.shape[1])
    check_combination(method, chosen_options, len(objectives))
    check_priorities(method, [objective.priority for objective in objectives])
    check_method(method, chosen_options, objectives)
    by_turn = names_turns(objectives)
    if by_turn:
        turns = check_values(turns, responses)
        check_turns(rewards, objectives, turns)
    needs = chosen.needs(chosen_options)
    objectives = _with_what_is_needed(objectives, needs, _name(chosen, method, chosen_options))
    _check_gradients(gram, needs, chosen_options, method, len(objectives))
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    tokens = None
    if responses.ndim == 1:
        lengths = check_lengths(responses)
    else:
        # The copy of the mask is turned into the result in place, so only one (N, T) tensor is allocated.
        tokens, lengths = token_mask(responses, dtype)
    batch = make_batch(rewards, groups, lengths, objectives, penalty=penalty, ddof=profile.ddof)
    statistics = objective_statistics(batch, profile)
    previous = None
    if previous_weights is not None:
        previous = _check_previous(previous_weights, len(objectives)).to(statistics.mean)
    gram = None if gram is None else gram.to(statistics.mean)
    remembered = check_memory(memory or {}, chosen.weighting.remembers, statistics.mean, f"memory for {method!r}")
    context = Context(batch, statistics, chosen_options, step, previous, gram, remembered)
    returned, kept = chosen.weighting.weigh(context)
    who = _name(chosen, method, chosen_options)
    weights = proposed = check_weights(returned, statistics.mean, batch.groups.number, chosen_options, who)
    if weights.ndim == 1:
        weights = smooth(proposed, previous, chosen_options)
    if by_turn and turns is not None and tokens is not None:
        each = token_advantages(batch, weights, chosen.aggregation, profile, objectives, turns, tokens)
        tokens = each.to(dtype)
        advantages = check_advantages(each.sum(dim=1) / batch.lengths.clamp(min=1), batch, who)
    else:
        advantages = check_advantages(chosen.aggregation.combine(batch, weights, profile), batch, who)
        tokens = None if tokens is None else tokens.mul_(advantages.to(dtype)[:, None])
    return Advantage(
        tokens,
        advantages,
        weights if weights.ndim == 1 else weights.mean(dim=0),
        proposed if proposed.ndim == 1 else proposed.mean(dim=0),
        statistics,
        check_memory(kept, chosen.weighting.remembers, statistics.mean, f"what the weighting of {who} remembers"),
    )


@torch.no_grad()
def objective_advantages(
    rewards: Tensor,
    groups: Groups,
    *,
    objectives: Sequence[Objective] | None = None,
    options: Options | Mapping[str, object] | None = None,
) -> Tensor:
    """The advantages of each objective on its own: its rewards, normalised within the group.

    The gradient methods compare the policy gradients of these.

    Args:
        rewards (Tensor): shape ``(N, K)``; NaN marks a missing value, which has advantage 0.
        groups: N ids, as in :func:`compute_advantage`.
        objectives (Sequence[Objective] | None): K of them; only their conditions are read.
        options (Options | Mapping | None): only ``profile`` is used.

    Returns:
        Tensor: shape ``(N, K)``, float64.

    Raises:
        ValueError: as :func:`compute_advantage` for the same inputs.
    """
    lengths = torch.ones(len(rewards), dtype=torch.float64, device=getattr(rewards, "device", None))
    check_shapes(rewards, lengths)
    counted = condition(rewards, check_objectives(objectives, rewards.shape[1]))
    profile = Options.of(options).numerics
    batch = make_batch(counted, groups, lengths, check_objectives(None, rewards.shape[1]), ddof=profile.ddof)
    return normalise(batch, profile)


def _name(chosen: Method, method: str, options: Options) -> str:
    """The method as messages call it."""
    return f"{method!r} with the measure {options.informativeness!r}" if chosen.measures else repr(method)


def _with_what_is_needed(objectives: tuple[Objective, ...], needs: Collection[Need], who: str) -> tuple[Objective, ...]:
    if "minima" in needs:
        objectives = _with_minima(objectives)
    if "maxima" in needs:
        for objective in objectives:
            if objective.maximum is None or objective.maximum == objective.minimum:
                raise ValueError(
                    f"the range of {objective.name!r} is from {objective.minimum} to {objective.maximum}; "
                    f"{who} needs a maximum above the minimum"
                )
    return objectives


@lru_cache(maxsize=8)  # a training passes the same objectives in each step
def _with_minima(objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
    return tuple(replace(given, minimum=0.0) if given.minimum is None else given for given in objectives)


def _check_step(step: int) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"step is {step!r}; expected a whole number, at least 0")
    return number


def _check_previous(weights: Sequence[float] | Tensor, objectives: int) -> Tensor:
    previous = torch.as_tensor(weights, dtype=torch.float64)
    good = previous.shape == (objectives,) and (previous >= 0).all() and abs(previous.sum().item() - 1) <= ROUNDING
    if not good:  # a NaN is not at least 0
        raise ValueError(
            f"previous_weights is {previous.tolist()}; expected {objectives} weights of at least 0 that sum to 1"
        )
    return previous


def _check_gradients(
    gram: Tensor | None, needs: Collection[Need], options: Options, method: str, objectives: int
) -> None:
    if "gradients" in needs:
        if gram is None:
            raise ValueError(f"gram is None; {method} with {options.informativeness!r} compares policy gradients")
        if gram.shape != (objectives, objectives) or not gram.isfinite().all():
            raise ValueError(f"gram is {gram.tolist()}; expected finite numbers of shape ({objectives}, {objectives})")
    if "learning_rate" in needs and options.gradient.lr is None:
        raise ValueError("options.gradient.lr is not set; outside of verl there is no learning rate to take it from")
