r"""A reward function of your own: two objectives in one file, without a change in the package.

    bash scripts/run.sh saw train experiment=quickstart saw.method=saw_gdpo '~objectives' \
        reward.custom_reward_function.path=examples/own_reward.py \
        '+saw.objectives={right_tool: {minimum: 0, maximum: 1}, brevity: {minimum: 0, maximum: 1, priority: 0.5}}' \
        +reward.custom_reward_function.reward_kwargs.max_words=40

``~objectives`` leaves out the shipped objectives. Ranges and priorities of your own are settings, so they can change
without a change of the code. Data and model are those of ``bash scripts/quickstart.sh``; for your own, set
``data.train_files``, ``data.val_files`` and ``actor_rollout_ref.model.path``.
"""

import math
import re
from typing import Any

TOOL = re.compile(r'"name": "(\w+)"')


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    max_words: int = 100,
) -> dict[str, float]:
    """Score one response.

    Args:
        data_source (str): the row's ``data_source``.
        solution_str (str): the response.
        ground_truth (str): the row's ``reward_model.ground_truth``.
        extra_info (dict | None): the row's ``extra_info``, and ``global_step``.
        max_words (int): number of words from which ``brevity`` is 0; one of verl's ``reward_kwargs``.

    Returns:
        dict[str, float]: one value per objective; NaN means that the objective does not apply to this row, and leaves
        it out of the objective's statistics.
    """
    wanted = TOOL.findall(ground_truth)
    return {
        "right_tool": float(TOOL.findall(solution_str) == wanted) if wanted else math.nan,
        "brevity": max(0.0, 1 - len(solution_str.split()) / max_words),
    }
