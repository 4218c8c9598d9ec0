"""Reads the scores from a judge's reply."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Maximum characters of a reply after its thought; a verdict is far shorter, but a judge may never stop.
LONGEST = 20_000

_THOUGHT = "think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad"
#: Start and end of a thought, in the spellings of models that write it into the reply.
_BEGIN = re.compile(
    rf"<\s*(?:{_THOUGHT})\b|\[think\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>\s*(?:analysis|commentary)", re.I
)
_END = re.compile(
    rf"<\s*/\s*(?:{_THOUGHT})\s*>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>\s*final\b[^<]*<\|message\|>",
    re.I,
)


class BadReply(ValueError):
    """A reply without a verdict; the message explains why, and is also sent to the judge."""


def parse(
    reply: str | None, objectives: Sequence[str], lowest: int, highest: int, judged: Iterable[str] = ()
) -> dict[str, int]:
    """Find the scores in a reply: one JSON object, outside of any other braces, with an integer per objective.

    The score is the value of the objective's name, or ``score`` in an object there. 7, 7.0 and "7" are integers.
    Several objects are accepted only if their scores are equal. Only the text after the last thought is read, and an
    object that also occurs in the judged texts is ignored as a quotation.

    Args:
        reply (str | None): the judge's reply.
        objectives (Sequence[str]): their names.
        lowest (int): the lowest score.
        highest (int): the highest score.
        judged (Iterable[str]): the texts that the judge was shown.

    Raises:
        BadReply: if the reply has no such scores.
    """
    text = _after_thought(reply or "")
    if not text.strip():
        raise BadReply("the reply is empty" if not (reply or "").strip() else "the reply is empty after its thought")
    if len(text) > LONGEST:
        raise BadReply(f"the reply is longer than {LONGEST} characters")
    shown = _Shown(judged, objectives)
    objects, broken = _objects(text)
    verdicts: list[dict[str, int]] = []
    fault: BadReply | None = None
    quoted = False
    for written, found in objects:
        if not any(name in found for name in objectives):
            continue
        if shown.has(written):
            quoted = True
            continue
        try:
            verdict = scores_of(found, objectives, lowest, highest)
        except BadReply as bad:
            fault = bad
            continue
        if verdict in shown.stated:
            quoted = True
        elif verdict not in verdicts:
            verdicts.append(verdict)
    if fault is not None:
        raise fault
    if not verdicts:
        why = "; the scores in the reply are quoted from the material to be judged" if quoted else ""
        raise BadReply(f"there is no JSON object with {' and '.join(map(repr, objectives))}{why}")
    if len(verdicts) > 1:
        raise BadReply(f"there are {len(verdicts)} JSON objects with different scores; expected one")
    if any(_pairs(part, objectives) and not shown.has(part) for part in broken):
        raise BadReply("besides a JSON object there are scores in braces that are not valid JSON; expected one object")
    return verdicts[0]


def scores_of(found: Mapping[str, Any], objectives: Sequence[str], lowest: int, highest: int) -> dict[str, int]:
    """The scores in a JSON object.

    Raises:
        BadReply: if one is missing, not an integer or out of range.
    """
    return {name: _score(found, name, lowest, highest) for name in objectives}


def _after_thought(reply: str) -> str:
    """The text after the last thought.

    Raises:
        BadReply: if a thought does not end: a verdict in it may be a draft.
    """
    end = max((match.end() for match in _END.finditer(reply)), default=0)
    if _BEGIN.search(reply, end):
        raise BadReply("the reply has a thought that does not end")
    return reply[end:]


def _objects(text: str) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The outermost JSON objects of a text, as text and parsed; and all other parts in braces.

    An object inside braces that are not valid JSON, or never close, is not returned: it is part of something broken.
    """
    objects: list[tuple[str, dict[str, Any]]] = []
    broken: list[str] = []
    depth = start = position = 0
    while (match := re.compile("[{}]").search(text, position)) is not None:
        position = match.end()
        if depth == 0:
            if match[0] == "}":
                continue
            start = match.start()
            if (read := _decode(text, start)) is not None:
                found, position = read
                objects.append((text[start:position], found))
            else:
                depth = 1
            continue
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            part = text[start:position]
            inner = part[1:-1].strip()
            read = _decode(inner, 0) if inner.startswith("{") else None
            if read is not None and read[1] == len(inner):  # doubled braces, as in a format string
                objects.append((inner, read[0]))
            else:
                broken.append(part)
    if depth > 0:
        broken.append(text[start:])
    return objects, broken


def _decode(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    try:
        return json.JSONDecoder(object_pairs_hook=_each_once).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key with several different values gets a list, which is not a valid score."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = value if key not in found or found[key] == value else [found[key], value]
    return found


class _Shown:
    """The texts that the judge was shown, to recognise quotations from them.

    Attributes:
        stated (list[dict[str, int]]): the scores found in these texts.
    """

    def __init__(self, judged: Iterable[str], objectives: Sequence[str]):
        texts = list(judged)
        self._words = [f" {_words(text)} " for text in texts]
        self._objectives = objectives
        self.stated = [scores for text in texts for scores in _stated(text, objectives)]

    def has(self, written: str) -> bool:
        """Whether JSON-like text occurs in a judged text, ignoring whitespace, quotes, brackets and order."""
        words = _words(written)
        if any(f" {words} " in text for text in self._words):
            return True
        return any(scores in self.stated for scores in _stated(written, self._objectives))


def _stated(text: str, objectives: Sequence[str]) -> list[dict[str, int]]:
    """Scores for all objectives that occur in a row in a text, in any order and notation."""
    pairs, number = _pairs(text, objectives), len(objectives)
    windows = (dict(pairs[start : start + number]) for start in range(len(pairs) - number + 1))
    return [window for window in windows if len(window) == number]


def _pairs(text: str, objectives: Sequence[str]) -> list[tuple[str, int]]:
    """The objectives whose name is followed by a number in a text: ``'quality': {"score": 7}``, ``quality=7``."""
    names = {words: name for name in objectives if (words := _words(name))}
    if not names:
        return []
    alternatives = "|".join(re.escape(words) for words in sorted(names, key=len, reverse=True))
    pattern = rf"(?<!\S)({alternatives})(?: score)? (-?\d{{1,9}})(?:\.0+)?(?!\S)"
    return [(names[match[1]], int(match[2])) for match in re.finditer(pattern, _words(text))]


def _words(text: str) -> str:
    """The words and numbers of a text, joined by spaces: the same for every spelling of the same JSON."""
    text = re.sub(r"\\+(?:u00|x)([0-7][\da-fA-F])", lambda code: chr(int(code[1], 16)), text)
    plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    plain = re.sub(r"\\[nrt]", " ", plain)
    if not plain.isascii():
        plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")  # zero-width characters
    return " ".join(re.findall(r"-?\d+(?:\.\d+)?(?!\w)|\w+", plain))


def _score(found: Mapping[str, Any], name: str, lowest: int, highest: int) -> int:
    if name not in found:
        raise BadReply(f"{name!r} is missing")
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
