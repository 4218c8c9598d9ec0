"""The reward manager ``saw``: verl's naive one, for several rewards of which some may be missing."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from saw.verl.settings import Settings


class MultiRewardManager(NaiveRewardManager):
    """Calls the reward function and keeps the scalar that verl logs and filters by finite.

    The reward function returns a dict with the objectives, NaN or None where a value is missing. If it gives no
    ``score``, or one that is not finite, the scalar is the sum of the present objectives. The scalar never
    enters an advantage; the objectives go through untouched.
    """

    def __init__(self, config, tokenizer, compute_score, **kwargs):
        names = Settings.of(config).names
        super().__init__(config, tokenizer, with_finite_score(compute_score, names), **kwargs)

    async def run_single(self, data: DataProto) -> dict:
        """Score one sample; the reward function finds verl's training step in ``extra_info["global_step"]``."""
        infos = data.non_tensor_batch.get("extra_info", np.array([{}] * len(data), dtype=object))
        steps = data.non_tensor_batch.get("global_steps", [0] * len(data))
        data.non_tensor_batch["extra_info"] = np.array(
            [{**(info or {}), "global_step": int(step)} for info, step in zip(infos, steps, strict=True)], dtype=object
        )
        return await super().run_single(data)


def with_finite_score(compute_score: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Wrap a reward function, plain or async, so that its dict always has a finite ``score``."""
    if inspect.iscoroutinefunction(compute_score):

        @functools.wraps(compute_score)
        async def wrapped_async(*args, **kwargs):
            return finite_score(await compute_score(*args, **kwargs), names)

        return wrapped_async

    @functools.wraps(compute_score)
    def wrapped(*args, **kwargs):
        return finite_score(compute_score(*args, **kwargs), names)

    return wrapped


def finite_score(result: Any, names: tuple[str, ...]) -> Any:
    """Give a reward function's dict a finite ``score``; anything but a dict passes, for the trainer to refuse."""
    if not isinstance(result, dict):
        return result
    score = result.get("score")
    if score is None or not math.isfinite(score):
        values = (float(result[name]) for name in names if result.get(name) is not None)
        score = sum(value for value in values if math.isfinite(value))
    return {**result, "score": float(score)}
