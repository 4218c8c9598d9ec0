"""SAW in slime and miles: the advantages of any method, through their hooks for custom rewards (docs/hosts.md).

    --custom-reward-post-process-path saw.slime.post_process --advantage-estimator grpo
    --custom-rollout-log-function-path saw.slime.log_rollout
    --custom-config-path saw.yaml

where ``saw.yaml`` has a section ``saw`` with ``method``, ``objectives`` and ``options``, as in the plug-in for verl.
The reward function returns a dict with one value per objective, None or NaN where it is missing.

Both trainers give a sample's advantage to each of its tokens under ``grpo``, and leave it as it is unless
``--normalize-advantages`` is set. They keep nothing for a hook between steps, so methods and options that need the
weights of the previous step are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import torch

from saw.method.advantage import Advantage, compute_advantage
from saw.method.demands import refuse_gradients, refuse_memory, refuse_turns
from saw.method.metrics import training_metrics
from saw.method.objective import Objective
from saw.method.options import Options

_KEYS = ("method", "objectives", "options")
_REMEDY = "set it in the file of --custom-config-path"


class Sample(Protocol):
    """The fields that are read from their ``Sample``."""

    group_index: int | None
    reward: Any
    response_length: int
    loss_mask: list[int] | None
    remove_sample: bool


def post_process(args: Any, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """``--custom-reward-post-process-path``: the rewards to log, and the advantages.

    Args:
        args: the trainer's arguments, with the section ``saw``.
        samples (Sequence[Sample]): all samples of a rollout step.

    Returns:
        tuple[list[float], list[float]]: for each sample the sum of its present rewards, which never enters an
        advantage, and its advantage.

    Raises:
        ValueError: for a missing or wrong section, a method that cannot work here, a sample without a group or without
            one of the objectives, and whatever :func:`saw.compute_advantage` refuses.
    """
    method, objectives, options = settings_of(args)
    rewards, result = _advantage(samples, method, objectives, options)
    return rewards.nansum(dim=1).tolist(), result.samples.tolist()


def log_rollout(
    rollout_id: int, args: Any, samples: Sequence[Sample], metrics: MutableMapping[str, Any] | None, seconds: float
) -> bool:
    """``--custom-rollout-log-function-path``: add ``saw/<objective>/...`` to what the trainer logs of a rollout step.

    Returns:
        bool: False, so that the trainer logs.

    Raises:
        TypeError: if the rollout function returned no dict of metrics to add to.
        ValueError: as :func:`post_process`.
    """
    if metrics is None:
        raise TypeError("the rollout function returned metrics None; saw.slime.log_rollout needs a dict, at least {}")
    method, objectives, options = settings_of(args)
    _, result = _advantage(samples, method, objectives, options)
    metrics.update(training_metrics(result, [objective.name for objective in objectives]))
    return False


def settings_of(args: Any) -> tuple[str, tuple[Objective, ...], Options]:
    """Method, objectives and options of the section ``saw``.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    section = getattr(args, "saw", None)
    if not isinstance(section, Mapping):
        raise ValueError(f"saw is {section!r}; expected a section with {', '.join(_KEYS)}; {_REMEDY}")
    for key in section:
        if key not in _KEYS:
            raise ValueError(f"saw.{key}: there is no such setting; allowed are {', '.join(_KEYS)}")
    given, method = section.get("objectives"), section.get("method")
    if not isinstance(given, Mapping) or not given:
        expected = "a mapping such as {format: {minimum: 0}}"
        raise ValueError(f"saw.objectives is {given!r}; expected {expected}; {_REMEDY}")
    try:
        objectives = tuple(Objective(str(name), **(rest or {})) for name, rest in given.items())
    except TypeError as error:
        raise ValueError(f"saw.objectives is {given!r}: {error}") from error
    options = Options.of(section.get("options"))
    refuse_gradients(str(method), options, "slime or miles")
    refuse_memory(str(method), options, "slime or miles")
    refuse_turns(objectives, "slime or miles")
    return str(method), objectives, options


def _advantage(
    samples: Sequence[Sample], method: str, objectives: Sequence[Objective], options: Options
) -> tuple[torch.Tensor, Advantage]:
    rewards = torch.tensor(
        [[_reward(sample, place, objective.name) for objective in objectives] for place, sample in enumerate(samples)],
        dtype=torch.float64,
    )
    groups = [_group(sample, place) for place, sample in enumerate(samples)]
    result = compute_advantage(
        rewards,
        groups,
        torch.tensor([_length(sample) for sample in samples]),
        method=method,
        objectives=objectives,
        options=options,
        step=min(groups),  # counts the prompts of a training, across a resume too
    )
    return rewards, result


def _reward(sample: Sample, place: int, name: str) -> float:
    """One reward of a sample; NaN if it is missing, or if the sample has none at all."""
    given = sample.reward
    if given is None:
        return math.nan
    if not isinstance(given, Mapping) or name not in given:
        raise ValueError(
            f"the reward of sample {place} is {given!r}; expected a dict with {name!r}, None or NaN where it is missing"
        )
    return math.nan if given[name] is None else float(given[name])


def _group(sample: Sample, place: int) -> int:
    if sample.group_index is None:
        raise ValueError(f"group_index of sample {place} is None; expected the number of its prompt")
    return sample.group_index


def _length(sample: Sample) -> int:
    """Tokens that are trained on."""
    if sample.remove_sample:
        return 0
    return sample.response_length if sample.loss_mask is None else sum(sample.loss_mask)
