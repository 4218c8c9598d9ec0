"""The project's rewards as verl's custom reward functions.

``reward.custom_reward_function.path=pkg://saw.verl.reward_functions``, and the name of one. Their options are
``reward.custom_reward_function.reward_kwargs``; the training step reaches them as ``extra_info["global_step"]``, put
there by :mod:`saw.verl.reward_manager`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saw.rewards import returns
from saw.rewards import toolrl as toolrl_rewards


def toolrl_bounds(step: int, options: Mapping[str, Any] | None = None) -> Mapping[str, tuple[float, float]]:
    """Ranges of ToolRL's rewards at a training step."""
    return toolrl_rewards.bounds(options, step)


@returns("format", "correctness", "length", bounds=toolrl_bounds)
def toolrl(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """ToolRL's rewards, see :mod:`saw.rewards.toolrl`; ``options`` are :class:`saw.rewards.toolrl.Options`."""
    return toolrl_rewards.score(solution_str, ground_truth, options, step=(extra_info or {}).get("global_step", 0))
