r"""Credit by turn: the reward of one turn of a dialogue reaches that turn's tokens only.

MT-GRPO (arXiv 2505.11821) gives the tokens of a tool-calling turn the advantage of that turn's reward and of the
outcome, and all later tokens the outcome's:

.. math:: A_{j,1} = A^O_j + \lambda A^T_j \qquad A_{j,2} = A^O_j

Here any number of objectives may name a turn (:attr:`saw.Objective.turn`); the others are outcomes, and reach every
turn. With the weights, priorities and normalised rewards of :mod:`saw.method.aggregation`, a token of turn m has

.. math:: A_{jm} = \sum_k c_k\, A_{jk}\, [k \text{ is an outcome or belongs to turn } m]

where c_k is the method's factor, such as :math:`n w_k \alpha_k` in GDPO and MO-GRPO. GDPO then whitens over all
response tokens; under a profile that whitens over samples, each turn of a sample counts once. Without an objective that
names a turn, this is the method itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from saw.method.aggregation import whiten
from saw.method.options import Options, Profile
from saw.method.registry import METHODS, Aggregation, get_method
from saw.method.reward_batch import RewardBatch


class HasTurn(Protocol):
    """The fields of an objective that are read here; :class:`saw.Objective` and the plug-in's settings have them."""

    @property
    def name(self) -> str: ...
    @property
    def turn(self) -> int | None: ...


def turns_of(mask: Tensor) -> Tensor:
    """Number the model's turns in responses that alternate between the model and its tools.

    Two turns of the model with no other token between them count as one.

    Args:
        mask (Tensor): shape ``(N, T)``, non-zero on the model's own tokens.

    Returns:
        Tensor: shape ``(N, T)``, int64: 1 on the tokens of the first turn, 2 on those of the second, and so on; 0
        elsewhere.
    """
    own = mask != 0
    starts = own.clone()
    starts[:, 1:] &= ~own[:, :-1]
    return starts.cumsum(dim=1) * own


def names_turns(objectives: Sequence[HasTurn]) -> bool:
    """Whether any objective belongs to a turn."""
    return any(objective.turn is not None for objective in objectives)


def check_method(name: str, options: Options, objectives: Sequence[HasTurn]) -> None:
    """Refuse objectives of a turn in a method that has no advantage of each objective on its own.

    Raises:
        ValueError: naming the objective, its turn, the method and the reason.
    """
    method = get_method(name)
    for objective in objectives:
        if objective.turn is None:
            continue
        given = f"the turn of {objective.name!r} is {objective.turn}, but {name}"
        if method.aggregation.linear is None:
            able = ", ".join(
                known
                for known, each in METHODS.items()
                if each.aggregation.linear is not None and "gradients" not in each.needs(options)
            )
            raise ValueError(
                f"{given} is not a sum of each objective's own advantages; use one of {able}, or leave the turn out"
            )
        if "gradients" in method.needs(options):
            raise ValueError(f"{given} compares policy gradients of whole responses; use another method or measure")


def check_turns(rewards: Tensor, objectives: Sequence[HasTurn], turns: Tensor) -> None:
    """Check that every present reward of a turn belongs to a turn that the sample has.

    Args:
        rewards (Tensor): shape ``(N, K)``, NaN where missing.
        objectives (Sequence[Objective]): K of them.
        turns (Tensor): shape ``(N, T)``, see :func:`turns_of`.

    Raises:
        ValueError: naming the objective, the sample and its number of turns.
    """
    for column, objective in zip(rewards.unbind(dim=1), objectives, strict=True):
        if objective.turn is None:
            continue
        bad = ~column.isnan() & ~(turns == objective.turn).any(dim=1).to(column.device)
        if bad.any():
            j = int(bad.nonzero()[0])
            number = int(turns[j].max()) if turns.shape[1] else 0
            raise ValueError(
                f"the reward of {objective.name!r} is {column[j].item():g} for sample {j}, and belongs to turn "
                f"{objective.turn}, but the sample has {number} turns; return NaN for a sample without that turn"
            )


def check_values(turns: Tensor | None, mask: Tensor) -> Tensor:
    """Check each token's turn.

    Args:
        turns (Tensor | None): shape ``(N, T)``.
        mask (Tensor): the response mask, shape ``(N, T)``.

    Returns:
        Tensor: the turns, int64, on the device of the mask.

    Raises:
        ValueError: if there are none, for another shape, or a response token without a turn.
        TypeError: for anything but a tensor of integers.
    """
    if mask.ndim != 2:
        raise ValueError(f"responses has shape {tuple(mask.shape)}; objectives of a turn need the mask, (N, T)")
    if turns is None:
        raise ValueError("turns is None, and an objective belongs to a turn; expected the turn of each token, (N, T)")
    if not isinstance(turns, Tensor) or turns.is_floating_point() or turns.is_complex() or turns.dtype == torch.bool:
        raise TypeError(f"turns is a {getattr(turns, 'dtype', type(turns).__name__)}; expected a tensor of integers")
    if turns.shape != mask.shape:
        raise ValueError(f"turns has shape {tuple(turns.shape)} and responses {tuple(mask.shape)}; expected the same")
    turns = turns.detach().to(mask.device, torch.int64)
    bad = (turns < 0) | ((turns == 0) & (mask != 0))
    if bad.any():
        j, t = bad.nonzero()[0].tolist()
        value = turns[j, t].item()
        raise ValueError(f"turns is {value} for token {t} of sample {j}; expected at least 1 on a response token")
    return turns


def token_advantages(
    batch: RewardBatch,
    weights: Tensor,
    aggregation: Aggregation,
    profile: Profile,
    objectives: Sequence[HasTurn],
    turns: Tensor,
    tokens: Tensor,
) -> Tensor:
    """The advantage of every token, see the module's docstring.

    A turn without any present reward that reaches it has advantage 0, and is left out of the whitening.

    Args:
        batch (RewardBatch): the step's rewards.
        weights (Tensor): shape ``(K,)`` or ``(G, K)``.
        aggregation (Aggregation): one with ``linear``.
        profile (Profile): the numerical constants.
        objectives (Sequence[Objective]): K of them.
        turns (Tensor): shape ``(N, T)``, int64.
        tokens (Tensor): shape ``(N, T)``, floating point, 1 on response tokens and 0 elsewhere.

    Returns:
        Tensor: shape ``(N, T)``, float64, 0 outside of the response.
    """
    assert aggregation.linear is not None
    number = max(int(turns.max()) if turns.numel() else 0, 1)
    own = torch.tensor([objective.turn or 0 for objective in objectives], device=batch.rewards.device)
    reaches = (own[:, None] == 0) | (own[:, None] == torch.arange(1, number + 1, device=own.device))  # (K, M)
    # What doesn't reach a turn counts as constant there: its advantage is 0, and its weight stays what it is.
    each = [
        aggregation.linear(replace(batch, rewards=batch.rewards * column), weights, profile)
        for column in reaches.double().unbind(dim=1)
    ]
    present = torch.ones_like(batch.rewards) if batch.missing is None else (~batch.missing).double()
    rated = present @ reaches.double() > 0  # (N, M)
    advantages = torch.stack(each, dim=1) * rated
    if aggregation.whitens and profile.whitening != "none":
        lengths = turns.new_zeros(len(turns), number + 1, dtype=torch.float64)
        counts = lengths.scatter_add_(1, turns, tokens.double())[:, 1:] * rated
        if profile.whitening == "samples":  # each turn of a sample counts once
            counts = (counts > 0).double()
        whitened = whiten(advantages.flatten(), counts.flatten(), profile)
        advantages = whitened.view_as(advantages) * rated
    return advantages.gather(1, (turns - 1).clamp(min=0)) * tokens
