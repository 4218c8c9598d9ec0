"""Table 1 from the existing evaluations: Markdown, CSV and LaTeX, ours beside the paper's.

python -m recipes.toolrl.table --runs runs/toolrl
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from recipes.common.paper_table import PaperTable
from recipes.common.reproduce import METHODS, READINGS
from recipes.toolrl.scores import CATEGORIES, scores

SIZES = ("1.5b", "3b")
NOTE = """All accuracies are in per cent. Ours: mean ± standard deviation over seeds; in brackets, the standard
deviation over evaluations of one checkpoint. n is seeds x evaluations. "Mean of the three" is that of Non-Live, Live
and Multi-Turn; "mean by items" is weighted by their numbers of items. BFCL's overall counts the categories that the
table leaves out as 0. The sources do not define the paper's Overall; the difference is our mean of the three minus
it."""


class Cell(NamedTuple):
    """One row of the table: a model, a method and a reading."""

    size: str
    method: str
    reading: str

    def folder(self, seed: int) -> str:
        """Name of the folder of one of its trainings."""
        return f"{'_'.join(self)}_seed{seed}"


def numbers(evaluation: Mapping[str, Any]) -> list[dict[str, float]]:
    """The columns of the table for each run of an ``evaluation.json``."""
    return [
        {
            **scores(run["categories"]),
            "package_overall": run["package_overall"],
            "format": 100.0 * run["format"]["correct"] / run["format"]["replies"],
        }
        for run in evaluation["runs"]
    ]


def left_out(evaluation: Mapping[str, Any]) -> str:
    """Why an evaluation is not in the table; empty if it is."""
    is_whole = set(evaluation["settings"]["categories"]) == set(CATEGORIES)
    return "" if is_whole else "it was evaluated on some of the categories only"


def remarks(name: str, cell: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Remarks on one training."""
    if cell["size_override"] is not None:
        yield f"**{name} is a rehearsal with a toy model: its numbers mean nothing.**"
    if (limit := evaluation["settings"]["limit"]) is not None:
        yield f"**{name} was asked the first {limit} of each category only.**"
    if refused := sum(run.get("refused", {}).get("items", 0) for run in evaluation["runs"]):
        yield f"**{name}: the server refused {refused} items, which count as wrong.**"


TABLE = PaperTable(
    name="table1",
    title="Table 1: BFCL v4",
    note=NOTE,
    cell=Cell,
    keys={"model": SIZES, "method": METHODS, "reading": tuple(READINGS)},
    evaluation="bfcl/evaluation.json",
    columns={
        "non_live": "Non-Live",
        "live": "Live",
        "multi_turn": "Multi-Turn",
        "mean_of_parts": "mean of the three",
        "mean_by_items": "mean by items",
        "package_overall": "BFCL's overall",
        "format": "format correct",
    },
    reported={"overall": "paper's Overall"},
    compared=("mean_of_parts", "overall"),
    numbers=numbers,
    remarks=remarks,
    left_out=left_out,
)

if __name__ == "__main__":
    TABLE.main(__doc__)
