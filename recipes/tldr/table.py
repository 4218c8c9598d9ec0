"""Table 2 from the existing evaluations: Markdown, CSV and LaTeX, ours beside the paper's.

python -m recipes.tldr.table --runs runs/tldr
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from recipes.common.paper_table import PaperTable
from recipes.common.reproduce import METHODS, READINGS

SCORES = ("quality", "conciseness", "total")
NOTE = """Ours: mean ± standard deviation over seeds; in brackets, the standard deviation over evaluations of one
checkpoint. n is seeds x evaluations. Quality and conciseness are scores from 0 to 10, by the judge of the training;
total is their sum. Missing is the number of summaries without a verdict, which are left out of every mean. The
difference is our total minus the paper's."""


class Cell(NamedTuple):
    """One row of the table: a method and a reading."""

    method: str
    reading: str

    def folder(self, seed: int) -> str:
        """Name of the folder of one of its trainings."""
        return f"{'_'.join(self)}_seed{seed}"


def numbers(evaluation: Mapping[str, Any]) -> list[dict[str, float]]:
    """The columns of the table for each run of an ``evaluation.json``."""
    judge = evaluation["settings"]["first_judge"]
    return [{**run["texts"], **run[judge]} for run in evaluation["runs"]]


def remarks(name: str, cell: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Remarks on one training."""
    settings = evaluation["settings"]
    if cell["size_override"] is not None:
        yield f"**{name} is a rehearsal with a toy model and a stand-in judge: its numbers mean nothing.**"
    if settings["limit"] is not None:
        yield f"**{name} was evaluated on {settings['rows']} posts only.**"
    if settings["second_judge"]:
        for number, run in enumerate(evaluation["runs"], start=1):
            yield f"{name}, run {number}: {_agreement(run)}"


def _agreement(run: Mapping[str, Any]) -> str:
    parts = [
        f"{name}: equal {values['equal']:.2f}, within one {values['within_one']:.2f}, "
        f"Spearman {values['spearman']:.2f}, second minus first {values['mean_difference']:+.2f}, n {values['n']}"
        for name, values in run["agreement"].items()
    ]
    return "agreement of the two judges: " + "; ".join(parts)


def judges(evaluation: Mapping[str, Any]) -> str:
    """The judges, for the line with a number's provenance."""
    found = [f"{name} ({judge['model']})" for name, judge in evaluation["settings"]["judge"].items()]
    return f"judged by {', '.join(found)}; "


TABLE = PaperTable(
    name="table2",
    title="Table 2: summaries of Reddit posts",
    note=NOTE,
    cell=Cell,
    keys={"method": METHODS, "reading": tuple(READINGS)},
    evaluation="judged/evaluation.json",
    columns={
        **dict(zip(SCORES, SCORES, strict=True)),
        "missing": "missing",
        "words_mean": "words",
        "rougeL": "ROUGE-L",
    },
    reported={name: f"paper's {name}" for name in SCORES},
    compared=("total", "total"),
    numbers=numbers,
    remarks=remarks,
    source=judges,
)

if __name__ == "__main__":
    TABLE.main(__doc__)
