"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table; the first ``left`` columns hold text, the others numbers."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(["---"] * left + ["---:"] * (len(header) - left)) + "|")
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """The same as a ``tabular`` with booktabs rules."""
    import pandas as pd  # takes half a second, which a table in Markdown does not need

    style = pd.DataFrame(rows, columns=list(header)).style.hide(axis="index").format(escape="latex")
    columns = "l" * left + "r" * (len(header) - left)
    text = style.format_index(escape="latex", axis="columns").to_latex(column_format=columns, hrules=True)
    return text.replace("±", r"$\pm$").replace("−", "$-$")  # for LaTeX before 2020


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """One line per row; None or an absent value becomes an empty cell, a float gets four decimals."""
    import pandas as pd

    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4f")
