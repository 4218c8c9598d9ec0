r"""A world small enough to run thousands of seeds at once: objectives that are learned at different speeds.

The policy makes one choice for each objective. It has logits :math:`\theta_k` over ``options`` choices, and the first
choice is right. The method combines all rewards of a sample, so the objectives interact as in a language model: through
the advantage. Nothing else couples them, and the policy's expected reward follows exactly from its logits. One step
draws ``prompts`` groups of ``rollouts`` samples and takes one step of gradient ascent,

.. math:: \theta_k \leftarrow \theta_k + \eta \frac1N \sum_j A_j \nabla \log \pi_k(a_{jk}).

The advantages are the library's own: its weightings and aggregations, mapped over the seeds with ``torch.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from saw.method.aggregation import normalise
from saw.method.conditions import condition
from saw.method.context import Context
from saw.method.groups import EvenGroups
from saw.method.objective import Objective as LibraryObjective
from saw.method.objective import Otherwise
from saw.method.options import Options
from saw.method.profiles import Profile
from saw.method.registry import get_method
from saw.method.reward_batch import RewardBatch, extremes, std_of_squares
from saw.method.smoothing import smooth
from saw.method.statistics import ObjectiveStatistics, coefficient_of_variation, objective_statistics

Memory = Mapping[str, Tensor]


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
        shares (int | None): another objective, whose choice also decides this one; None for a choice of its own.
        pays (tuple[float, ...] | None): what each choice earns; None is 1 for the first and 0 for the others.
        requires (Mapping[str, float] | None): as of :class:`saw.Objective`.
        otherwise (Literal["minimum", "missing"]): as of :class:`saw.Objective`.
    """

    name: str
    options: int = 2
    start: float | None = None
    noise: float = 0.0
    offset: float = 0.0
    luck: float | None = None
    shares: int | None = None
    pays: tuple[float, ...] | None = None
    requires: Mapping[str, float] | None = None
    otherwise: Otherwise = "minimum"

    def first_logits(self) -> Tensor:
        """Logits of the untrained policy, shape ``(options,)``."""
        right = 1.0 / self.options if self.start is None else self.start
        logits = torch.zeros(self.options, dtype=torch.float64)
        logits[0] = torch.tensor(right * (self.options - 1) / (1.0 - right)).log()
        return logits

    def value(self, choices: Tensor) -> Tensor:
        """What choices are worth before noise: whether they are right, or what they pay."""
        return choices == 0 if self.pays is None else torch.tensor(self.pays, dtype=torch.float64)[choices]

    def reward(self, right: Tensor, chance: torch.Generator) -> Tensor:
        """Rewards of samples that chose right or wrong, or of what their choices are worth."""
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
        adaptive (bool): divide a seed's advantages by the root mean square of all of its advantages so far, as Adam
            does with gradients: the size of the steps is then the same for every method.
    """

    objectives: tuple[Objective, ...]
    prompts: int = 32
    rollouts: int = 4
    steps: int = 150
    lr: float = 0.25
    penalty: float = 0.0
    adaptive: bool = False

    @property
    def heads(self) -> list[int]:
        """The objectives that have a choice of their own."""
        return [k for k, objective in enumerate(self.objectives) if objective.shares is None]

    def head_of(self, k: int) -> int:
        """The objective whose choice decides objective k."""
        shares = self.objectives[k].shares
        return k if shares is None else shares


@dataclass(frozen=True)
class Rule:
    """How the objectives are weighted.

    Attributes:
        method (str): a name in :data:`saw.METHODS`.
        options (Mapping[str, Any]): fields of :class:`saw.Options`.
        feels_penalty (bool): whether the world's KL penalty applies to this method.
        window (int): the weights come from the statistics of this many batches, the last ones; only in this world.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    feels_penalty: bool = True
    window: int = 1


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


def advantages(world: World, rule: Rule) -> Callable[..., tuple[Any, ...]]:
    """The library's method for many seeds at once.

    Returns:
        Callable: ``(rewards (S, N, K), penalty (S, N), given (S, K), previous (S, K), first, gram (S, K, K), memory)``
        to advantages ``(S, N)``, weights, CVs, shares of groups with spread ``(S, K)``, and the memory of the next
        step. ``given`` are the weights of the random control; other methods ignore them. ``gram`` and ``memory`` may be
        left out where the method has none.
    """
    method, options = get_method(rule.method), Options.of(rule.options)
    size = len(world.objectives)
    is_random = rule.method.startswith("random_")
    penalised = world.penalty > 0 and rule.feels_penalty and method.aggregation.takes_penalty

    def one(
        rewards: Tensor, penalty: Tensor, given: Tensor, previous: Tensor, first: bool, gram: Tensor, memory: Memory
    ) -> tuple[Any, ...]:
        """The method for one seed; vmap adds the dimension of the seeds."""
        batch = _batch(world, rewards, penalty if penalised else None)
        statistics = objective_statistics(batch, options.numerics)
        kept: Memory = {}
        if is_random:
            weights = given
        else:
            before, weighed = None if first else previous, statistics
            if rule.window > 1:
                weighed, kept = pooled(statistics, batch, memory, rule.window, options.numerics)
            context = Context(batch, weighed, options, step=1, previous=before, gram=gram, memory=memory)
            weights, memory = method.weighting.weigh(context)
            if weights.ndim == 1:
                weights = smooth(weights, None if first else previous, options)
        combined = method.aggregation.combine(batch, weights, options.numerics)
        mean_weights = weights if weights.ndim == 1 else weights.mean(dim=0)
        return combined, mean_weights, statistics.cv, 1.0 - statistics.zero_spread, {**memory, **kept}

    mapped = torch.vmap(one, in_dims=(0, 0, 0, 0, None, 0, 0))

    def many(
        rewards: Tensor,
        penalty: Tensor,
        given: Tensor,
        previous: Tensor,
        first: bool,
        gram: Tensor | None = None,
        memory: Memory = MappingProxyType({}),
    ) -> tuple[Any, ...]:
        gram = rewards.new_zeros(len(rewards), size, size) if gram is None else gram
        return mapped(rewards, penalty, given, previous, first, gram, dict(memory))

    return many


def pooled(
    statistics: ObjectiveStatistics, batch: RewardBatch, memory: Memory, window: int, profile: Profile
) -> tuple[ObjectiveStatistics, Memory]:
    """Mean, deviation and CV of all samples of the last batches.

    Args:
        statistics (ObjectiveStatistics): of this batch.
        batch (RewardBatch): this batch, without missing rewards; all batches have the same size.
        memory (Memory): what this function returned with the previous batch.
        window (int): number of batches, with this one.
        profile (Profile): the constants of CV.

    Returns:
        tuple: the statistics with these three replaced, and the means and deviations of the batches so far, shape
        ``(at most window, K)`` each.
    """
    assert batch.missing is None
    kept = {
        name: torch.cat([memory.get(name, now[:0]), now])[-window:]
        for name, now in (("means", statistics.mean[None]), ("stds", statistics.std[None]))
    }
    means, number, ddof = kept["means"], len(batch.rewards), batch.ddof
    mean = means.mean(dim=0)
    within, between = (number - ddof) * kept["stds"].square(), number * (means - mean).square()
    total = torch.full_like(mean, number * len(means))
    std = std_of_squares((within + between).sum(dim=0), total, ddof)
    cv = coefficient_of_variation(mean, std, batch.minima, profile)
    return replace(statistics, mean=mean, std=std, cv=cv), kept


def _batch(world: World, rewards: Tensor, penalty: Tensor | None) -> RewardBatch:
    """One seed's step as the library's batch; the configured ranges are always 0 to 1, even where they are wrong."""
    chosen = [
        LibraryObjective(each.name, 0.0, requires=each.requires, otherwise=each.otherwise) for each in world.objectives
    ]
    rewards = condition(rewards, chosen)
    missing = rewards.isnan() if any(each.otherwise == "missing" for each in chosen) else None
    rewards = rewards if missing is None else rewards.masked_fill(missing, 0.0)
    smallest, largest = extremes(rewards, missing)
    size = len(chosen)
    return RewardBatch(
        rewards=rewards,
        missing=missing,
        groups=EvenGroups(world.prompts, world.rollouts),
        smallest=smallest,
        largest=largest,
        minima=rewards.new_zeros(size),
        maxima=rewards.new_ones(size),
        priorities=rewards.new_ones(size),
        penalty=penalty,
        lengths=torch.ones_like(rewards[:, 0]),
    )


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
    logits = {k: world.objectives[k].first_logits().expand(seeds, -1).clone() for k in world.heads}
    reference = {k: values.log_softmax(dim=-1) for k, values in logits.items()}
    method, compares = advantages(world, rule), compares_gradients(rule)
    memory: Memory = {}
    squares = torch.zeros(seeds, 1, dtype=torch.float64)
    previous = torch.full((seeds, size), 1.0 / size, dtype=torch.float64)
    right, weights, cvs, spreads = [_right(world, logits)], [], [], []
    for step in range(world.steps):
        log_probs = {k: values.log_softmax(dim=-1) for k, values in logits.items()}
        uniform = torch.rand(seeds, number, size, generator=chance, dtype=torch.float64)
        choices = {k: _choose(values.exp(), uniform[:, :, k]) for k, values in log_probs.items()}
        rewards = torch.stack(
            [
                objective.reward(objective.value(choices[world.head_of(k)]), chance)
                for k, objective in enumerate(world.objectives)
            ],
            dim=-1,
        )
        drift = sum((log_probs[k] - reference[k]).gather(1, choices[k]) for k in world.heads)
        exponential = -torch.rand(seeds, size, generator=control, dtype=torch.float64).log()
        given = exponential / exponential.sum(dim=1, keepdim=True)  # uniform on the simplex
        gram = _gram(world, rule, rewards, choices, log_probs) if compares else None
        advantage, used, cv, spread, memory = method(
            rewards, world.penalty * drift, given, previous, step == 0, gram, memory
        )
        if world.adaptive:
            squares += advantage.square().mean(dim=1, keepdim=True)
            advantage = advantage * ((step + 1) / squares.clamp(min=1e-12)).sqrt()
        for k, values in log_probs.items():
            logits[k] += world.lr * _gradient(advantage, choices[k], values)
        previous = used
        right.append(_right(world, logits))
        weights.append(used)
        cvs.append(cv)
        spreads.append(spread)
    return Trajectories(*(torch.stack(values, dim=1) for values in (right, weights, cvs, spreads)))


def compares_gradients(rule: Rule) -> bool:
    """Whether the method needs the objectives' policy gradients."""
    return "gradients" in get_method(rule.method).needs(Options.of(rule.options))


def _gradient(advantage: Tensor, choices: Tensor, log_probs: Tensor) -> Tensor:
    """The policy gradient of one head, shape ``(S, M)``, from ``(S, N)`` advantages and choices."""
    gain = torch.zeros_like(log_probs).scatter_add_(1, choices, advantage)
    return (gain - advantage.sum(dim=1, keepdim=True) * log_probs.exp()) / advantage.shape[1]


def _gram(
    world: World, rule: Rule, rewards: Tensor, choices: Mapping[int, Tensor], log_probs: Mapping[int, Tensor]
) -> Tensor:
    """Inner products of the gradients of each objective's own advantages: shape ``(S, K, K)``."""
    profile = Options.of(rule.options).numerics
    own = torch.vmap(lambda each: normalise(_batch(world, each, None), profile))(rewards)
    gradients = torch.cat(
        [
            torch.stack([_gradient(own[:, :, k], choices[h], log_probs[h]) for k in range(own.shape[2])], dim=1)
            for h in world.heads
        ],
        dim=2,
    )
    return gradients @ gradients.transpose(1, 2)


def _right(world: World, logits: Mapping[int, Tensor]) -> Tensor:
    probabilities = {k: values.softmax(dim=-1)[:, 0] for k, values in logits.items()}
    return torch.stack([probabilities[world.head_of(k)] for k in range(len(world.objectives))], dim=-1)


def _choose(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw from ``(S, M)`` probabilities with ``(S, N)`` uniform numbers: ``(S, N)`` choices."""
    edges = probabilities.cumsum(dim=-1)
    return torch.searchsorted(edges, uniform.contiguous()).clamp(max=probabilities.shape[-1] - 1)
