"""The metrics of every step and validation, under stable names.

For each objective: ``saw/<objective>/{mean,std,min,max,cv,weight,proposed_weight,zero_spread,missing}`` in training
(the proposed weight is the method's, the weight is what smoothing and other options make of it), and
``saw-val/<objective>/{mean,std,min,max,missing}`` in validation. ``saw/failed`` and ``saw-val/failed`` count samples
whose reward function raised, so that all of their rewards are missing; ``saw/lost`` and ``saw-val/lost`` count
requested samples that never came back. ``judge/...`` is a judge's cost. A value that does not exist (the mean of an
objective that is missing for all samples) is NaN.

verl's ``critic/score/{mean,max,min}`` are of the scalar, which is 0 for a sample without any reward; such samples are
left out here. ``critic/rewards`` (the scalar after a KL penalty) and ``critic/returns`` stay verl's, zeros included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saw.method.metrics import training_metrics
from saw.verl.mini_batches import together
from saw.verl.names import FAILED
from saw.verl.reward_values import reward_value

if TYPE_CHECKING:
    from saw.verl.estimator import StepRewards
    from saw.verl.gradients import ObjectiveGradients


def step_metrics(mini_batches: Sequence[StepRewards], names: Sequence[str]) -> dict[str, float]:
    """All metrics of a step from its mini-batches (usually one): rewards, weights, lost samples, the judge."""
    infos = [info for part in mini_batches for info in part.infos]
    return {
        **training_metrics(together(mini_batches), names),
        **judge_metrics(infos),
        **sample_counts(failed_samples(infos), sum(part.lost for part in mini_batches)),
    }


def score_metrics(rewards: Tensor, scores: Tensor) -> dict[str, float]:
    """verl's metrics of the scalar reward, over the samples that have a reward.

    Args:
        rewards (Tensor): shape ``(N, K)``, NaN where missing.
        scores (Tensor): shape ``(N,)``, the scalars, 0 for a sample without any reward.

    Returns:
        dict[str, float]: empty if every sample has a reward, so that verl's own are kept.
    """
    unrated = rewards.isnan().all(dim=1)
    present = scores[~unrated].double()
    if not unrated.any() or not len(present):
        return {}
    values = {"mean": present.mean(), "max": present.max(), "min": present.min()}
    return {f"critic/score/{what}": value.item() for what, value in values.items()}


def gradient_metrics(found: ObjectiveGradients, compared: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Each objective's ``gradient_norm`` and ``influence`` (:func:`saw.method.weighting.gradient`), and their cost.

    Args:
        found (ObjectiveGradients): from the workers; the norms are of these gradients, before clipping.
        compared (Tensor): shape ``(K, K)``, the inner products that are compared, after clipping.
        names (Sequence[str]): of the objectives.
    """
    norms, influence = found.gram.diagonal().clamp(min=0.0).sqrt(), compared.sum(dim=1)
    return {
        **{f"saw/{name}/gradient_norm": value for name, value in zip(names, norms.tolist(), strict=True)},
        **{f"saw/{name}/influence": value for name, value in zip(names, influence.tolist(), strict=True)},
        "saw/gradients/forward_seconds": found.forward_seconds,
        "saw/gradients/backward_seconds": found.backward_seconds,
    }


def validation_metrics(infos: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> dict[str, float]:
    """Metrics of one validation from the reward function's values, None or NaN where missing."""
    metrics: dict[str, float] = {}
    for name in names:
        values = np.array([reward_value(value) for value in infos[name]])
        present = values[~np.isnan(values)]
        some = len(present) > 0
        metrics |= {
            f"saw-val/{name}/mean": float(present.mean()) if some else float("nan"),
            f"saw-val/{name}/std": float(present.std(ddof=1)) if len(present) > 1 else 0.0 if some else float("nan"),
            f"saw-val/{name}/min": float(present.min()) if some else float("nan"),
            f"saw-val/{name}/max": float(present.max()) if some else float("nan"),
            f"saw-val/{name}/missing": float(len(values) - len(present)),
        }
    return metrics


#: Values that a reward function may add to a sample's rewards as ``judge_<name>``, and that are summed.
_JUDGE_SUMS = ("requests", "input_tokens", "output_tokens", "dollars")


def failed_samples(infos: Sequence[Mapping[str, Any]]) -> int:
    """How many samples have no rewards because the reward function raised; see :mod:`saw.verl.reward_manager`."""
    return sum(info.get(FAILED) == 1.0 for info in infos)


def sample_counts(failed: int, lost: float, prefix: str = "saw") -> dict[str, float]:
    """Samples without any reward: those whose reward function raised, and those that never came back (NaN: unknown)."""
    return {f"{prefix}/failed": float(failed), f"{prefix}/lost": float(lost)}


def judge_metrics(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The judge's cost in one step: sums over the samples, the share of cached answers, and the latency.

    Each is over the samples that have the value. ``judge/without_cost`` counts samples with an incomplete cost: the
    reward function does not report it, or the server did not count the tokens of a reply.

    Args:
        infos (Sequence[Mapping]): the reward function's dict of each sample; one that failed does not count.

    Returns:
        dict[str, float]: empty if no judge was asked; has no ``judge/without_cost`` if every cost is known.
    """
    infos = [info for info in infos if not failed_samples([info])]
    if not any(key.startswith("judge_") for info in infos for key in info):
        return {}
    sums = {name: _present(infos, f"judge_{name}") for name in _JUDGE_SUMS}
    cached, seconds = _present(infos, "judge_cached"), _present(infos, "judge_seconds")
    without = sum(
        any(_finite(info.get(f"judge_{name}")) is None for name in _JUDGE_SUMS)
        or (_finite(info.get("judge_uncounted")) or 0.0) > 0.0
        for info in infos
    )
    return {
        **{f"judge/{name}": float(values.sum()) if len(values) else math.nan for name, values in sums.items()},
        "judge/hit_rate": float(cached.mean()) if len(cached) else math.nan,
        "judge/seconds/mean": float(seconds.mean()) if len(seconds) else math.nan,
        "judge/seconds/p95": float(np.quantile(seconds, 0.95)) if len(seconds) else math.nan,
        "judge/seconds/max": float(seconds.max()) if len(seconds) else math.nan,
        **({"judge/without_cost": float(without)} if without else {}),
    }


def _present(infos: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """The values of the samples that have one."""
    values = (_finite(info.get(key)) for info in infos)
    return np.array([value for value in values if value is not None], dtype=float)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None
