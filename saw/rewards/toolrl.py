"""ToolRL's rule-based rewards for one assistant turn: format, correctness and, optionally, length.

The rules and all variants follow the released scoring code and are tested against its output. They depend
on the response, the reference and the training step only, take time linear in the length of the response, and never
raise on a model's output.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_FORMATS = {  # (the answer has a response, the answer has tool calls) -> pattern of the whole turn
    (True, False): r"^<think>.*?</think>\n<response>.*?</response>$",
    (False, True): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$",
    (True, True): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>\n<response>.*?</response>$",
    (False, False): r"^<think>.*?</think>$",
}
_TAGS = ("<response>", "</response>"), ("<tool_call>", "</tool_call>")
_CALL_TAG = re.compile("</?tool_call>")


class Options(BaseModel):
    """The variant of ToolRL's rewards; the default is the paper's, and each field is a switch of the released code.

    Attributes:
        length (bool): add the length reward.
        correctness_max (float): correctness lies in ``[-correctness_max, correctness_max]``.
        coarse (bool): correctness is the maximum for an exact match, otherwise the minimum.
        refined (bool): tool names, and parameter names, count only if all of them match in order.
        intermediate (bool): a call counts only if it is identical to the reference's.
        late_correctness (bool): correctness is scaled by 1/3 before step 30, format by 1/2 from step 30 on.
        reward_schedule (bool): both ranges start at [-2, 2]; over 150 steps format's narrows and correctness's widens.
        length_schedule (bool): the number of words for the full length reward grows from 384, by 256 per 105 steps.
        length_words (int): the number of words for the full length reward without that schedule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: bool = False
    correctness_max: float = Field(default=3.0, gt=0.0)
    coarse: bool = False
    refined: bool = False
    intermediate: bool = False
    late_correctness: bool = False
    reward_schedule: bool = False
    length_schedule: bool = False
    length_words: int = Field(default=512, gt=0)

    @classmethod
    def of(cls, options: Options | Mapping[str, Any] | None) -> Options:
        """Return options given as an :class:`Options`, a mapping of its fields or None as an :class:`Options`."""
        if options is None:
            return _DEFAULT
        return options if isinstance(options, Options) else cls.model_validate(dict(options))


_DEFAULT = Options()


def bounds(options: Options | Mapping[str, Any] | None = None, step: int = 0) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each enabled objective at a training step."""
    options = Options.of(options)
    ranges = {"format": _format_bounds(options, step), "correctness": _correctness_bounds(options, step)}
    return {**ranges, "length": (0.0, 1.0)} if options.length else ranges


def _format_bounds(options: Options, step: int) -> tuple[float, float]:
    low, high = 0.0, 1.0
    if options.late_correctness and step >= 30:
        low, high = low / 2, high / 2
    if options.reward_schedule:
        high = max(2 - (2 - high) * step / 150, 1.0)
        low = min(-2 + (2 + low) * step / 150, -1.0)
    return low, high


def _correctness_bounds(options: Options, step: int) -> tuple[float, float]:
    low, high = -options.correctness_max, options.correctness_max
    if options.late_correctness and step < 30:
        low, high = low / 3, high / 3
    if options.reward_schedule:
        high = min((high - 2) * step / 150 + 2, 3.0)
        low = max((low + 2) * step / 150 - 2, -3.0)
    return low, high


def score(
    response: str, ground_truth: str, options: Options | Mapping[str, Any] | None = None, step: int = 0
) -> dict[str, float]:
    """Score one response.

    Args:
        response (str): the assistant turn; surrounding white space is ignored.
        ground_truth (str): the reference turn, text with tags like the response.
        options (Options | Mapping | None): the variant.
        step (int): the training step, for the schedules.

    Returns:
        dict[str, float]: ``format``, ``correctness``, ``length`` (0 if disabled) and their sum, ``score``.

    Raises:
        ValueError: if the reference is not text with tags, or its tool calls cannot be read. This is an error in the
            data, see ``data_prep``.
    """
    options = Options.of(options)
    response = response.strip()
    parts = {
        "format": format_reward(response, ground_truth, _format_bounds(options, step)),
        "correctness": correctness_reward(response, ground_truth, options, _correctness_bounds(options, step)),
        "length": length_reward(response, options, step) if options.length else 0.0,
    }
    return {**parts, "score": sum(parts.values())}


def format_reward(response: str, ground_truth: str, bound: tuple[float, float] = (0.0, 1.0)) -> float:
    """The maximum if the turn has exactly the reference's parts, in order and each tag once; otherwise the minimum.

    Raises:
        ValueError: if the reference is not text with tags.
    """
    _check_reference(ground_truth)
    low, high = bound
    has = ("<response>" in ground_truth, "<tool_call>" in ground_truth)
    required = [tag for tags, wanted in zip(_TAGS, has, strict=True) if wanted for tag in tags]
    # Count first: if each tag occurs once, the lazy parts of the pattern take time linear in the length.
    if any(response.count(tag) != 1 for tag in required):
        return low
    return high if re.search(_FORMATS[has], response, re.DOTALL) else low


def correctness_reward(
    response: str, ground_truth: str, options: Options = _DEFAULT, bound: tuple[float, float] = (-3.0, 3.0)
) -> float:
    """How well the tool calls match the reference's, within the bounds; 0 if the reference has none.

    Raises:
        ValueError: if the reference is not text with tags, or its tool calls cannot be read.
    """
    _check_reference(ground_truth)
    if "<tool_call>" not in ground_truth:
        return 0.0
    low, high = bound
    true_calls = _reference_calls(ground_truth)
    try:
        calls = parse_tool_calls(response)
        if calls == true_calls:
            return high
        share = 0.0 if options.coarse else _match(calls, true_calls, options)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return low  # the response does not contain a valid list of tool calls
    return (high - low) * share + low


def length_reward(response: str, options: Options = _DEFAULT, step: int = 0) -> float:
    """Number of words in the (last) thought over the target number, at most 1, rounded to two decimals."""
    if "<think>" not in response or "</think>" not in response:
        return 0.0
    wanted = 384 + (640 - 384) * step / 105 if options.length_schedule else options.length_words
    thought = response.rpartition("<think>")[2].partition("</think>")[0]
    return min(round(len(thought.split()) / wanted, 2), 1.0)


def parse_tool_calls(turn: str) -> list[Any]:
    """Parse the JSON value on each line of a turn's first block of tool calls.

    As in the released code, the block begins at the first ``<tool_call>`` and ends at the next ``<tool_call>`` or
    ``</tool_call>``; the turn must contain a ``</tool_call>``, but it may come before the block.

    Raises:
        ValueError: if there is no such block, or a line is not valid JSON.
    """
    opening = turn.find("<tool_call>")
    if opening < 0 or "</tool_call>" not in turn:
        raise ValueError("no <tool_call> ... </tool_call> block")
    begin = opening + len("<tool_call>")
    following = _CALL_TAG.search(turn, begin)
    block = turn[begin : following.start() if following else None]
    return [json.loads(line) for line in block.strip().split("\n")]


def _check_reference(ground_truth: Any) -> None:
    """Refuse a reference that would give every answer the same reward.

    Raises:
        ValueError: if it is not text with at least one tag.
    """
    expected = "expected the reference turn as text with <think>, <tool_call> or <response>"
    if not isinstance(ground_truth, str):
        raise ValueError(f"ground_truth is of type {type(ground_truth).__name__}: {_short(ground_truth)}; {expected}")
    if not any(tag in ground_truth for tag in ("<think>", "<tool_call>", "<response>")):
        raise ValueError(f"ground_truth has none of the tags: {_short(ground_truth)}; {expected}")


def is_tool_call(call: Any) -> bool:
    """Whether a value is a valid tool call of a reference: a name with a dictionary of parameters."""
    named = isinstance(call, dict) and isinstance(call.get("name"), str)
    return named and isinstance(call.get("parameters"), dict)


def _reference_calls(ground_truth: str) -> list[dict[str, Any]]:
    """The reference's tool calls.

    Raises:
        ValueError: if they cannot be read, or one is not a name with a dictionary of parameters.
    """
    try:
        calls = parse_tool_calls(ground_truth)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"the tool calls of ground_truth cannot be read ({fault}): {_short(ground_truth)}") from fault
    for call in calls:
        if not is_tool_call(call):
            raise ValueError(
                f"a tool call of ground_truth is {_short(call)}; expected a name and a dictionary of parameters"
            )
    return calls


def _short(value: Any) -> str:
    """A value for a message, at most 200 characters long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _match(calls: list[dict[str, Any]], true_calls: list[dict[str, Any]], options: Options) -> float:
    """Score in [0, 1]: overlap of the names, and for each reference call the best unused call of the same name."""
    names = [call["name"] for call in calls]
    true_names = [call["name"] for call in true_calls]
    earned = _overlap(true_names, names, options)
    possible = 1.0
    used: set[int] = set()
    for true_call in true_calls:
        possible += 1.0 if options.intermediate else 1.0 + len(true_call["parameters"])
        best, best_index = 0.0, -1
        for index, call in enumerate(calls):
            if index in used or names[index] != true_call["name"]:
                continue
            if options.intermediate:
                value = float(call == true_call)
            else:
                value = _match_parameters(call["parameters"], true_call["parameters"], options)
            if value > best:
                best, best_index = value, index
        if best_index >= 0:
            used.add(best_index)
            earned += best
    return earned / possible


def _match_parameters(parameters: dict[str, Any], true_parameters: dict[str, Any], options: Options) -> float:
    names = _overlap(list(true_parameters.keys()), list(parameters.keys()), options)
    equal = sum(1 for name, value in true_parameters.items() if name in parameters and parameters[name] == value)
    return names + equal


def _overlap(wanted: Sequence[Any], given: Sequence[Any], options: Options) -> float:
    """Intersection of two multisets over their union; 1 if both are empty. Refined: 1 if equal and in order, or 0."""
    if options.refined:
        return float(wanted == given)
    a, b = Counter(wanted), Counter(given)
    union = sum((a | b).values())
    return sum((a & b).values()) / union if union else 1.0
