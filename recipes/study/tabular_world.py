r"""A world small enough to run thousands of seeds at once: objectives that are learned at different speeds.

The policy makes one choice for each objective: it has logits :math:`\theta_k` over ``options`` choices, of which the
first is right. The method combines all rewards of a sample, so the objectives interact as in a language model: through
the advantage. Nothing else couples them, and the policy's expected reward follows exactly from its logits. One step
draws ``prompts`` groups of ``rollouts`` samples and takes one step of gradient ascent,

.. math:: \theta_k \leftarrow \theta_k + \eta \frac1N \sum_j A_j \nabla \log \pi_k(a_{jk}).

The advantages are the library's own: its weightings and aggregations, mapped over the seeds with ``torch.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saw.method.context import Context
from saw.method.options import Options
from saw.method.registry import get_method
from saw.method.reward_batch import RewardBatch, extremes
from saw.method.smoothing import smooth
from saw.method.statistics import objective_statistics


@dataclass(frozen=True)
class Objective:
    """One reward of the world.

    A sample earns ``offset`` and, if its choice is right, ``1 - noise * U`` with U uniform in [0, 1]: this noise
    remains once the objective is learned. With ``luck``, the choice does not matter: 1 with that probability.

    Attributes:
        name (str): of the objective.
        options (int): choices; the untrained policy is right with probability 1/options, unless ``start`` is set.
        start (float | None): the untrained policy's probability of being right; None is 1/options.
        noise (float): in [0, 1].
        offset (float): added to every reward; the method's minimum stays 0.
        luck (float | None): probability of a reward that does not depend on the policy.
    """

    name: str
    options: int = 2
    start: float | None = None
    noise: float = 0.0
    offset: float = 0.0
    luck: float | None = None

    def first_logits(self) -> Tensor:
        """Logits of the untrained policy, shape ``(options,)``."""
        right = 1.0 / self.options if self.start is None else self.start
        logits = torch.zeros(self.options, dtype=torch.float64)
        logits[0] = torch.tensor(right * (self.options - 1) / (1.0 - right)).log()
        return logits

    def reward(self, right: Tensor, chance: torch.Generator) -> Tensor:
        """Rewards of samples that chose right or wrong."""
        uniform = torch.rand(right.shape, generator=chance, dtype=torch.float64)
        if self.luck is not None:
            return (uniform < self.luck).double() + self.offset
        return right.double() * (1.0 - self.noise * uniform) + self.offset


@dataclass(frozen=True)
class World:
    """What is learned, and how.

    Attributes:
        objectives (tuple[Objective, ...]): K of them.
        prompts (int): groups per step.
        rollouts (int): samples per group.
        steps (int): number of steps.
        lr (float): learning rate of the gradient ascent.
        penalty (float): weight of a KL penalty against the untrained policy, subtracted from the combined reward.
    """

    objectives: tuple[Objective, ...]
    prompts: int = 32
    rollouts: int = 4
    steps: int = 150
    lr: float = 0.25
    penalty: float = 0.0


@dataclass(frozen=True)
class Rule:
    """How the objectives are weighted.

    Attributes:
        method (str): a name in :data:`saw.METHODS`.
        options (Mapping[str, Any]): fields of :class:`saw.Options`.
        feels_penalty (bool): whether the world's KL penalty applies to this method.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    feels_penalty: bool = True


@dataclass(frozen=True)
class Trajectories:
    """The course of the training, one row per seed.

    Attributes:
        right (Tensor): shape ``(S, T + 1, K)``, the policy's exact probability of being right, before each step and
            after the last.
        weights (Tensor): shape ``(S, T, K)``.
        cv (Tensor): shape ``(S, T, K)``.
        spread (Tensor): shape ``(S, T, K)``, share of the groups in which the objective's rewards differ.
    """

    right: Tensor
    weights: Tensor
    cv: Tensor
    spread: Tensor

    def reached(self, objective: int, threshold: float) -> Tensor:
        """The first step after which the policy is right with at least this probability; T + 1 if it never is."""
        steps = self.right.shape[1] - 1
        above = self.right[:, :, objective] >= threshold
        return torch.where(above.any(dim=1), above.double().argmax(dim=1), steps + 1).double()


def advantages(world: World, rule: Rule) -> Callable[..., tuple[Tensor, ...]]:
    """The library's method for many seeds at once.

    Returns:
        Callable: ``(rewards (S, N, K), penalty (S, N), given (S, K), previous (S, K), first)`` to advantages
        ``(S, N)``, weights, CVs and shares of groups with spread ``(S, K)``. ``given`` are the weights of the random
        control; other methods ignore them.
    """
    method, options = get_method(rule.method), Options.of(rule.options)
    number = world.prompts * world.rollouts
    group = torch.arange(number) // world.rollouts
    size = len(world.objectives)
    is_random = rule.method.startswith("random_")
    penalised = world.penalty > 0 and rule.feels_penalty and method.aggregation.takes_penalty

    def one(rewards: Tensor, penalty: Tensor, given: Tensor, previous: Tensor, first: bool) -> tuple[Tensor, ...]:
        smallest, largest = extremes(rewards, None)
        batch = RewardBatch(
            rewards=rewards,
            missing=None,
            group=group,
            n_groups=world.prompts,
            smallest=smallest,
            largest=largest,
            minima=rewards.new_zeros(size),
            maxima=rewards.new_ones(size),
            priorities=rewards.new_ones(size),
            penalty=penalty if penalised else None,
            lengths=torch.ones_like(rewards[:, 0]),
        )
        statistics = objective_statistics(batch, options.numerics)
        if is_random:
            weights = given
        else:
            weights = method.weighting.compute(Context(batch, statistics, options))
            if weights.ndim == 1:
                weights = smooth(weights, None if first else previous, options)
        combined = method.aggregation.combine(batch, weights, options.numerics)
        mean_weights = weights if weights.ndim == 1 else weights.mean(dim=0)
        return combined, mean_weights, statistics.cv, 1.0 - statistics.zero_spread

    return torch.vmap(one, in_dims=(0, 0, 0, 0, None))


@torch.no_grad()
def learn(world: World, rule: Rule, seeds: int, first_seed: int = 0) -> Trajectories:
    """Train one policy per seed, all at once.

    Args:
        world (World): the task.
        rule (Rule): how its objectives are weighted.
        seeds (int): S, the number of policies.
        first_seed (int): different seeds draw different samples; the same seed draws the same for every rule.
    """
    chance = torch.Generator().manual_seed(first_seed)
    control = torch.Generator().manual_seed(first_seed + 10_000)
    size, number = len(world.objectives), world.prompts * world.rollouts
    logits = [objective.first_logits().expand(seeds, -1).clone() for objective in world.objectives]
    reference = [values.log_softmax(dim=-1) for values in logits]
    method = advantages(world, rule)
    previous = torch.full((seeds, size), 1.0 / size, dtype=torch.float64)
    right, weights, cvs, spreads = [_right(logits)], [], [], []
    for step in range(world.steps):
        log_probs = [values.log_softmax(dim=-1) for values in logits]
        uniform = torch.rand(seeds, number, size, generator=chance, dtype=torch.float64)
        choices = [_choose(values.exp(), uniform[:, :, k]) for k, values in enumerate(log_probs)]
        rewards = torch.stack(
            [objective.reward(choices[k] == 0, chance) for k, objective in enumerate(world.objectives)], dim=-1
        )
        drift = sum((log_probs[k] - reference[k]).gather(1, choices[k]) for k in range(size))
        exponential = -torch.rand(seeds, size, generator=control, dtype=torch.float64).log()
        given = exponential / exponential.sum(dim=1, keepdim=True)  # uniform on the simplex
        advantage, used, cv, spread = method(rewards, world.penalty * drift, given, previous, step == 0)
        for k, values in enumerate(log_probs):
            gain = torch.zeros_like(values).scatter_add_(1, choices[k], advantage)
            logits[k] += world.lr / number * (gain - advantage.sum(dim=1, keepdim=True) * values.exp())
        previous = used
        right.append(_right(logits))
        weights.append(used)
        cvs.append(cv)
        spreads.append(spread)
    return Trajectories(*(torch.stack(values, dim=1) for values in (right, weights, cvs, spreads)))


def _right(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([values.softmax(dim=-1)[:, 0] for values in logits], dim=-1)


def _choose(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw from ``(S, M)`` probabilities with ``(S, N)`` uniform numbers: ``(S, N)`` choices."""
    edges = probabilities.cumsum(dim=-1)
    return torch.searchsorted(edges, uniform.contiguous()).clamp(max=probabilities.shape[-1] - 1)
