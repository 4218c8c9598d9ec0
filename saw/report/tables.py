"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

#: Characters with a special meaning in LaTeX, and how to write them.
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table; the first ``left`` columns hold text, the others numbers."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(["---"] * left + ["---:"] * (len(header) - left)) + "|")
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """The same as a ``tabular`` with booktabs rules."""
    lines = [
        r"\begin{tabular}{" + "l" * left + "r" * (len(header) - left) + "}",
        r"\toprule",
        *(f"{' & '.join(map(_escape, row))} \\\\" for row in [header]),
        r"\midrule",
        *(f"{' & '.join(map(_escape, row))} \\\\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def latex_of(text: str) -> str:
    """The first table of a Markdown text, as LaTeX."""
    lines = next(part for part in text.split("\n\n") if part.startswith("| ")).splitlines()
    header, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return latex(header, rows, left=rule.count("---"))


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """One line per row; None becomes an empty cell, a float gets four decimals."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()})


def _escape(text: str) -> str:
    return re.sub(r"[\\~^±−&%$#_{}]", lambda found: _LATEX[found[0]], text)
