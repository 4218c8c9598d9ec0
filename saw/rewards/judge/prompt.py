"""What is sent to a judge."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from saw.rewards.judge.options import JudgeError

#: What a prompt for summaries may name; the last is what is judged, and must be there.
SUMMARY_FIELDS = ("reddit_text", "human_summary", "model_summary")

#: The beginning of what could be a tag or a model's special token: ``</post>``, ``< / POST a=1>``, ``<|im_end|>``.
_TAG = re.compile(r"(?:[<＜﹤]|&lt;?|&#0*60;?|&#x0*3c;?)(?=[\W_]{0,200}[^\W\d_])", re.I)
_BRACES = {
    "❴": re.compile(r"[{｛﹛]|&lcub;|&lbrace;|&#0*123;?|&#x0*7b;?", re.I),
    "❵": re.compile(r"[}｝﹜]|&rcub;|&rbrace;|&#0*125;?|&#x0*7d;?", re.I),
}


def load(path: Path) -> Template:
    """Read a template: ``$name`` is filled in, lines that start with ``%%`` are left out.

    Raises:
        JudgeError: if it cannot be read, a ``$`` begins no field, or there is no field.
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
                f"judge.prompt: {path} has {line[:20]!r}, which is no field; "
                "expected $name or ${name} for a field, $$ for a dollar sign"
            )
    if not template.get_identifiers():
        raise JudgeError(f"judge.prompt: {path} names no field, so every text would be judged alike; expected $name")
    return template


def check(path: Path, fields: Sequence[str] = SUMMARY_FIELDS) -> None:
    """See that a template can be filled in, and holds what is to be judged.

    Args:
        path (Path): the template.
        fields (Sequence[str]): what it may name; the last is what is judged.

    Raises:
        JudgeError: naming the file, the field, and what is allowed.
    """
    names = load(path).get_identifiers()
    allowed = ", ".join(f"${name}" for name in fields)
    for name in names:
        if name not in fields:
            raise JudgeError(f"judge.prompt: {path} has the field ${name}, which nobody fills in; expected {allowed}")
    if fields[-1] not in names:
        raise JudgeError(
            f"judge.prompt: {path} does not have ${fields[-1]}, so every text would be judged alike; allowed: {allowed}"
        )


def fill(template: Template, fields: Mapping[str, str]) -> str:
    """Fill a template in.

    A field cannot end the tag that it stands in, and holds no JSON that could be quoted as a verdict: what begins a
    tag, and every brace, is replaced by a character that looks like it.

    Raises:
        KeyError: if a field is absent.
    """
    return template.substitute({name: _defused(text) for name, text in fields.items()})


def _defused(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # no lone surrogates
    text = _TAG.sub("‹", text)
    for harmless, brace in _BRACES.items():
        text = brace.sub(harmless, text)
    return text
