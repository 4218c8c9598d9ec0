"""The prompt that is sent to a judge."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from saw.rewards.judge.options import JudgeError

#: Fields of a prompt for summaries; the last one is the text to be judged, and is required.
SUMMARY_FIELDS = ("reddit_text", "human_summary", "model_summary")

#: The start of a possible tag or special token of a model: ``</post>``, ``< / POST a=1>``, ``<|im_end|>``.
_TAG = re.compile(r"(?:[<＜﹤]|&lt;?|&#0*60;?|&#x0*3c;?)(?=[\W_]{0,200}[^\W\d_])", re.I)
_BRACES = {
    "❴": re.compile(r"[{｛﹛]|&lcub;|&lbrace;|&#0*123;?|&#x0*7b;?", re.I),
    "❵": re.compile(r"[}｝﹜]|&rcub;|&rbrace;|&#0*125;?|&#x0*7d;?", re.I),
}


def load(path: Path) -> Template:
    """Read a template: ``$name`` is a field, and lines that start with ``%%`` are comments.

    Raises:
        JudgeError: if it cannot be read, a ``$`` does not start a field, or there is no field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(f"judge.prompt: {path} cannot be read: {error}") from None
    lines = [line for line in text.splitlines() if not line.startswith("%%")]
    template = Template("\n".join(lines).strip())
    for match in template.pattern.finditer(template.template):
        if match["invalid"] is not None:
            (line, *_) = template.template[match.start() :].splitlines()
            raise JudgeError(
                f"judge.prompt: {path} has {line[:20]!r}, which is not a field; "
                "expected $name or ${name} for a field, $$ for a dollar sign"
            )
    if not template.get_identifiers():
        raise JudgeError(f"judge.prompt: {path} has no field, so every text would get the same prompt; expected $name")
    return template


def check(path: Path, fields: Sequence[str] = SUMMARY_FIELDS) -> None:
    """Check that a template can be filled in and contains the text to be judged.

    Args:
        path (Path): the template.
        fields (Sequence[str]): the allowed fields; the last one is the text to be judged.

    Raises:
        JudgeError: naming the file, the field, and what is allowed.
    """
    names = load(path).get_identifiers()
    allowed = ", ".join(f"${name}" for name in fields)
    for name in names:
        if name not in fields:
            raise JudgeError(f"judge.prompt: {path} has the field ${name}, which is unknown; expected {allowed}")
    if fields[-1] not in names:
        raise JudgeError(f"judge.prompt: {path} does not have ${fields[-1]}, the text to be judged; allowed: {allowed}")


def fill(template: Template, fields: Mapping[str, str]) -> str:
    """Fill in a template.

    A field can neither close the tag around it nor contain JSON that could be quoted as a verdict: the start of every
    tag and every brace is replaced by a look-alike character.

    Raises:
        KeyError: if a field is missing.
    """
    return template.substitute({name: _defused(text) for name, text in fields.items()})


def _defused(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # no lone surrogates
    text = _TAG.sub("‹", text)
    for harmless, brace in _BRACES.items():
        text = brace.sub(harmless, text)
    return text
