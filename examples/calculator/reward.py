"""Rewards of a dialogue with a calculator: of its first turn, of its second, and of the whole.

verl's ``tool_agent`` puts into ``extra_info``: ``tool_rewards``, the rewards that the tools returned; ``num_turns``,
the number of messages after the system's (question, call, result, answer: 4); and ``turn_scores``, which is empty
unless an agent loop of your own fills it.
"""

import math
from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> dict[str, float]:
    """Score one dialogue.

    Args:
        data_source (str): the row's ``data_source``.
        solution_str (str): everything after the question, the tool's results included.
        ground_truth (str): the right number.
        extra_info (dict | None): see above.

    Returns:
        dict[str, float]: ``call``, whether the first turn called the calculator and it could compute that; ``plain``,
        whether the second turn is nothing but a number, NaN if there is no second turn; ``correct``, whether the last
        turn is the right number.
    """
    info = extra_info or {}
    answer = solution_str.rpartition("assistant\n")[2].strip()
    return {
        "call": float(bool(info.get("tool_rewards")) and info["tool_rewards"][0] == 1.0),
        "plain": float(is_number(answer)) if info.get("num_turns", 0) >= 4 else math.nan,
        "correct": float(answer == ground_truth),
    }


def is_number(text: str) -> bool:
    """Whether a text is a number and nothing else."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
