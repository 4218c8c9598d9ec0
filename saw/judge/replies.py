"""What counts as a judge's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

#: Characters of a reply that are read; a verdict is far shorter, and a judge may run on for ever.
LONGEST = 20_000


class BadReply(ValueError):
    """A reply that holds no verdict; the message says why, in words for the judge."""


def parse(reply: str | None, objectives: Sequence[str], lowest: int, highest: int) -> dict[str, int]:
    """Find the scores in a reply: one JSON object, anywhere in the text, with an integer for each objective.

    A score stands under its objective's name, or under ``score`` in there. 7, 7.0 and "7" are integers. Several
    objects are no verdict unless they say the same.

    Args:
        reply (str | None): what the judge said.
        objectives (Sequence[str]): their names.
        lowest (int): of a score.
        highest (int): of a score.

    Raises:
        BadReply: if that is not what the reply holds.
    """
    if not reply or not reply.strip():
        raise BadReply("the reply is empty")
    if len(reply) > LONGEST:
        raise BadReply(f"the reply is longer than {LONGEST} characters")
    verdicts: list[dict[str, int]] = []
    fault: BadReply | None = None
    for found in _objects(reply):
        if not any(name in found for name in objectives):
            continue
        try:
            verdict = {name: _score(found, name, lowest, highest) for name in objectives}
        except BadReply as bad:
            fault = bad
            continue
        if verdict not in verdicts:
            verdicts.append(verdict)
    if fault is not None:
        raise fault
    if not verdicts:
        raise BadReply(f"there is no JSON object with {' and '.join(map(repr, objectives))}")
    if len(verdicts) > 1:
        raise BadReply(f"there are {len(verdicts)} JSON objects with different scores; expected one")
    return verdicts[0]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects of a text."""
    decoder = json.JSONDecoder()
    position = 0
    while (start := text.find("{", position)) >= 0:
        try:
            found, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            position = start + 1
            continue
        if isinstance(found, dict):
            yield found


def _score(found: dict[str, Any], name: str, lowest: int, highest: int) -> int:
    if name not in found:
        raise BadReply(f"{name!r} is absent")
    value = found[name]
    if isinstance(value, dict):
        if "score" not in value:
            raise BadReply(f"{name!r} has no 'score'")
        value = value["score"]
    number = _integer(value)
    if number is None:
        raise BadReply(f"the score of {name!r} is {str(value)[:50]!r}; expected an integer")
    if not lowest <= number <= highest:
        raise BadReply(f"the score of {name!r} is {str(number)[:50]}; expected {lowest} to {highest}")
    return number


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) else None
