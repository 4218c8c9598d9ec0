"""The project's rewards as verl's custom reward functions.

``reward.custom_reward_function.path=pkg://saw.verl.reward_functions``, and the name of one.
"""

from __future__ import annotations

from typing import Any

from saw.rewards import returns
from saw.rewards import toolrl as toolrl_rewards


@returns(*toolrl_rewards.OBJECTIVES)
def toolrl(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, float]:
    """ToolRL's format and correctness rewards, see :mod:`saw.rewards.toolrl`."""
    return toolrl_rewards.score(solution_str, ground_truth)
