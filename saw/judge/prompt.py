"""What is sent to a judge."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template


def load(path: Path) -> Template:
    """Read a template: ``$name`` is filled in, lines that start with ``%%`` are left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("%%")]
    return Template("\n".join(lines).strip())


def fill(template: Template, fields: Mapping[str, str]) -> str:
    """Fill a template in.

    A field cannot end the tag that it stands in: tags of the template's own names are defused in it.

    Raises:
        KeyError: if a field is absent.
    """
    tags = "|".join(re.findall(r"<(\w+)>\$", template.template)) or r"\Z\A"
    sendable = {name: text.encode("utf-8", "replace").decode() for name, text in fields.items()}  # no lone surrogates
    defused = {name: re.sub(rf"<(?=\s*/?\s*(?:{tags})\b)", "‹", text) for name, text in sendable.items()}
    return template.substitute(defused)
