"""The reward manager ``saw``: verl's naive one, for several rewards, some of which may be missing."""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from saw.verl.config import Settings
from saw.verl.names import FAILED
from saw.verl.reward_values import plain, reward_value

logger = logging.getLogger(__name__)

#: What a failed reward may raise. A sandboxed response that calls ``exit()`` must not end the reward worker.
FAULTS = (Exception, SystemExit)


class MultiRewardManager(NaiveRewardManager):
    """Calls the reward function, and makes sure that the scalar, which verl logs and filters by, is finite.

    The reward function returns a dict with the objectives, NaN or None where a value is missing. If it returns no
    finite ``score``, the scalar is the sum of the present objectives. The scalar never enters an advantage; the
    objectives are passed on as plain floats.

    verl drops a sample whose reward function raises, and continues. Here such a sample counts as one without rewards,
    and :data:`saw.verl.names.FAILED` marks it in the dict.
    """

    def __init__(self, config, tokenizer, compute_score, **kwargs):
        self._failures = Failures(Settings.of(config).names, filter_metric(config))
        super().__init__(config, tokenizer, with_finite_score(compute_score, self._failures), **kwargs)

    async def run_single(self, data: DataProto) -> dict:
        """Score one sample; the reward function finds verl's training step in ``extra_info["global_step"]``."""
        try:
            infos = data.non_tensor_batch.get("extra_info", np.array([{}] * len(data), dtype=object))
            steps = data.non_tensor_batch.get("global_steps", [0] * len(data))
            data.non_tensor_batch["extra_info"] = np.array(
                [{**(info or {}), "global_step": int(step)} for info, step in zip(infos, steps, strict=True)],
                dtype=object,
            )
            return await super().run_single(data)
        except FAULTS as error:  # outside the reward function: a row without a reference, or a response without text
            result = self._failures.result(error)
            return {"reward_score": result["score"], "reward_extra_info": result}


class Failures:
    """The placeholder rewards of samples whose reward function failed.

    Args:
        names (tuple[str, ...]): the objectives.
        metric (str | None): a further key that every dict must have, :func:`filter_metric`.
    """

    def __init__(self, names: tuple[str, ...], metric: str | None = None):
        self.names = names
        self._keys = dict.fromkeys([*names, *([metric] if metric else [])])
        self._seen: set[tuple[str, str, int]] = set()

    def result(self, error: BaseException) -> dict[str, float]:
        """A dict with the same keys as the others, all missing; a new kind of fault is logged with its traceback."""
        kind = _kind(error)
        if kind not in self._seen:
            self._seen.add(kind)
            logger.error(
                "the reward function failed: the sample has no rewards, and is counted in saw/failed; further "
                "faults of this kind are not logged",
                exc_info=(type(error), error, error.__traceback__),
            )
        return {**dict.fromkeys(self._keys, math.nan), "score": 0.0, FAILED: 1.0}

    def passed(self, result: dict[str, Any]) -> dict[str, Any]:
        """Mark a dict as a success, and remember its keys."""
        self._keys.update(dict.fromkeys(result))
        return {**result, FAILED: 0.0}


def _kind(error: BaseException) -> tuple[str, str, int]:
    """The type of an error and the line that raised it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = ("", 0) if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
    return type(error).__name__, *place


def filter_metric(config: DictConfig) -> str | None:
    """The key of the reward dict by which verl filters groups; None if it does not filter, or uses the scalar."""
    section = OmegaConf.select(config, "algorithm.filter_groups", default=None) or {}
    metric = section.get("metric") if section.get("enable") else None
    return None if metric in (None, "reward") else str(metric)


def with_finite_score(compute_score: Callable[..., Any], failures: Failures) -> Callable[..., Any]:
    """Wrap a reward function, plain or async: it then never raises, and its dict always has a finite ``score``."""
    if inspect.iscoroutinefunction(compute_score):

        @functools.wraps(compute_score)
        async def wrapped_async(*args, **kwargs):
            try:
                return _checked(await compute_score(*args, **kwargs), failures)
            except FAULTS as error:
                return failures.result(error)

        return wrapped_async

    # This runs in a thread of verl's; a StopIteration would never leave it, and the run would hang.
    @functools.wraps(compute_score)
    def wrapped(*args, **kwargs):
        try:
            return _checked(compute_score(*args, **kwargs), failures)
        except FAULTS as error:
            return failures.result(error)

    return wrapped


def _checked(result: Any, failures: Failures) -> Any:
    """A reward function's dict as verl gets it; a number passes here and is refused by the trainer."""
    if isinstance(result, Mapping):
        return failures.passed(finite_score(result, failures.names))
    if isinstance(plain(result), Real):
        return plain(result)
    raise TypeError(f"the reward function returned {result!r}; expected a dict with the objectives")


def finite_score(result: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Give a reward function's dict a finite ``score``, and plain Python numbers for rewards.

    Raises:
        TypeError: for a reward that is not a number.
    """
    rewards = {}
    for name in names:
        if name in result:
            try:
                rewards[name] = reward_value(result[name])
            except TypeError as error:
                raise TypeError(f"the reward {name!r}: {error}") from None
    score = reward_value(result.get("score"))
    if not math.isfinite(score):
        score = sum(value for value in rewards.values() if math.isfinite(value))
    # "reward" is verl's name for the scalar, which it adds to the dict
    others = {key: plain(value) for key, value in result.items() if key != "reward"}
    return {**others, **rewards, "score": float(score)}
