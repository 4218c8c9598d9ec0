"""ToolRL's rule-based rewards for one assistant turn: format in {0, 1} and correctness in [-3, 3].

The rules are those of the released scoring code (``golden/toolrl_rewards.json``). They are plain functions of two
strings and never raise on a model's output.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

OBJECTIVES = ("format", "correctness")
CORRECTNESS_MIN, CORRECTNESS_MAX = -3.0, 3.0

_FORMATS = {  # (the answer has a response, the answer has tool calls) -> what the whole turn must look like
    (True, False): r"^<think>.*?</think>\n<response>.*?</response>$",
    (False, True): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$",
    (True, True): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>\n<response>.*?</response>$",
    (False, False): r"^<think>.*?</think>$",
}
_TAGS = ("<response>", "</response>"), ("<tool_call>", "</tool_call>")


def score(response: str, ground_truth: str) -> dict[str, float]:
    """Score one response.

    Args:
        response (str): the assistant turn; surrounding white space does not count.
        ground_truth (str): the reference turn.

    Returns:
        dict[str, float]: ``format``, ``correctness`` and their sum, ``score``.
    """
    response = response.strip()
    parts = {
        "format": format_reward(response, ground_truth),
        "correctness": correctness_reward(response, ground_truth),
    }
    return {**parts, "score": sum(parts.values())}


def format_reward(response: str, ground_truth: str) -> float:
    """1 if the turn has just the parts that the reference has, in order and each tag once; else 0."""
    has = ("<response>" in ground_truth, "<tool_call>" in ground_truth)
    if re.search(_FORMATS[has], response, re.DOTALL) is None:
        return 0.0
    required = [tag for tags, wanted in zip(_TAGS, has, strict=True) if wanted for tag in tags]
    return float(all(response.count(tag) == 1 for tag in required))


def correctness_reward(response: str, ground_truth: str) -> float:
    """How well the tool calls match the reference's, from -3 to 3; 0 where the reference has none."""
    if "<tool_call>" not in ground_truth:
        return 0.0
    true_calls = parse_tool_calls(ground_truth)
    try:
        calls = parse_tool_calls(response)
        share = 1.0 if calls == true_calls else _match(calls, true_calls)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return CORRECTNESS_MIN  # whatever the model wrote, it is not a list of tool calls
    return (CORRECTNESS_MAX - CORRECTNESS_MIN) * share + CORRECTNESS_MIN


def parse_tool_calls(turn: str) -> list[dict[str, Any]]:
    """Parse the JSON object on each line between the first ``<tool_call>`` and the next ``</tool_call>``.

    Raises:
        ValueError: if there is no such block, or a line is not JSON.
    """
    _, opening, rest = turn.partition("<tool_call>")
    block, closing, _ = rest.partition("</tool_call>")
    if not opening or not closing:
        raise ValueError("no <tool_call> ... </tool_call> block")
    return [json.loads(line) for line in block.strip().split("\n")]


def _match(calls: list[dict[str, Any]], true_calls: list[dict[str, Any]]) -> float:
    """Score in [0, 1]: names, and for each true call its best unused call of the same name."""
    earned = _jaccard(Counter(call["name"] for call in true_calls), Counter(call["name"] for call in calls))
    possible = 1.0
    used: set[int] = set()
    for true_call in true_calls:
        possible += 1.0 + len(true_call["parameters"])
        best, best_index = 0.0, -1
        for index, call in enumerate(calls):
            if index in used or call["name"] != true_call["name"]:
                continue
            value = _match_parameters(call["parameters"], true_call["parameters"])
            if value > best:
                best, best_index = value, index
        if best_index >= 0:
            used.add(best_index)
            earned += best
    return earned / possible


def _match_parameters(parameters: dict[str, Any], true_parameters: dict[str, Any]) -> float:
    names = _jaccard(Counter(true_parameters.keys()), Counter(parameters.keys()))
    equal = sum(1 for name, value in true_parameters.items() if name in parameters and parameters[name] == value)
    return names + equal


def _jaccard(a: Counter, b: Counter) -> float:
    """Overlap of two multisets over their union; 1 for two empty ones."""
    union = sum((a | b).values())
    return sum((a & b).values()) / union if union else 1.0
