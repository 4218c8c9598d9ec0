"""Table 1 from the evaluations that are there: Markdown and CSV, ours beside the paper's.

python -m recipes.toolrl.table1 --runs runs/toolrl
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.paper_table import (
    NOT_COMPARED,
    NOT_RUN,
    Measurement,
    command_line,
    departures,
    paper_notes,
    paper_of,
    write,
)
from recipes.common.reproduce import METHODS, READINGS
from recipes.toolrl.scores import CATEGORIES, scores
from saw.report.tables import markdown

SIZES = ("1.5b", "3b")
READING_ORDER = tuple(READINGS)
#: Column -> its heading.
COLUMNS = {
    "non_live": "Non-Live",
    "live": "Live",
    "multi_turn": "Multi-Turn",
    "mean_of_parts": "mean of the three",
    "mean_by_items": "mean by items",
    "package_overall": "BFCL's overall",
    "format": "format correct",
}
NOTE = """Per cent. Ours: mean ± standard deviation over seeds (in brackets: over evaluations of one checkpoint); n is
seeds x evaluations. The sources do not define the paper's Overall; the difference is the mean of the three less it.
BFCL's overall counts the categories that the table leaves out as 0."""


@dataclass(frozen=True, order=True)
class Cell:
    """One row of the table: a model, a method and a reading."""

    size: str
    method: str
    reading: str

    def folder(self, seed: int) -> str:
        """Name of the folder of one of its trainings."""
        return f"{self.size}_{self.method}_{self.reading}_seed{seed}"


def measurements(evaluations: list[dict[str, Any]]) -> dict[str, Measurement]:
    """The columns of a row.

    Args:
        evaluations (list[dict]): ``evaluation.json`` of each seed.
    """
    rows = [[_run(run) for run in evaluation["runs"]] for evaluation in evaluations]
    return {name: Measurement(tuple(tuple(run[name] for run in runs) for runs in rows)) for name in COLUMNS}


def _run(run: dict[str, Any]) -> dict[str, float]:
    form = run["format"]
    share = 100.0 * form["correct"] / form["replies"]
    return {**scores(run["categories"]), "package_overall": run["package_overall"], "format": share}


def read(runs: Path) -> tuple[dict[Cell, dict[int, dict[str, Any]]], list[str]]:
    """Evaluations by cell and seed, and what a reader must be told of them."""
    found: dict[Cell, dict[int, dict[str, Any]]] = {}
    warnings = []
    paper = paper_of("table1")
    for path in sorted(runs.glob("*/cell.json")):
        cell = json.loads(path.read_text())
        evaluation = path.parent / "bfcl" / "evaluation.json"
        if not evaluation.exists():
            continue
        content = json.loads(evaluation.read_text())
        if "reading" not in cell:
            warnings.append(f"{path.parent.name} left out: its cell.json does not say which reading it was trained in")
            continue
        settings = content["settings"]
        if set(settings["categories"]) != set(CATEGORIES):
            warnings.append(f"{path.parent.name} left out: it was evaluated on some of the categories only")
            continue
        if cell["size_override"] is not None:
            warnings.append(f"{path.parent.name} is a rehearsal with a toy model: its numbers mean nothing")
        if settings["limit"] is not None:
            warnings.append(f"{path.parent.name} was asked the first {settings['limit']} of each category only")
        if refused := sum(run.get("refused", {}).get("items", 0) for run in content["runs"]):
            warnings.append(f"{path.parent.name}: the server refused {refused} items, which count as wrong")
        if cell["overrides"]:
            warnings.append(f"{path.parent.name} was trained with {' '.join(cell['overrides'])}")
        content["departures"] = departures(cell, settings, paper)
        found.setdefault(Cell(cell["size"], cell["method"], cell["reading"]), {})[cell["seed"]] = content
    return found, warnings


def make_table(runs: Path) -> tuple[str, list[dict[str, object]]]:
    """The table as Markdown, and its rows for CSV.

    Args:
        runs (Path): the folder that the reproduction wrote.
    """
    found, warnings = read(runs)
    reported = paper_of("table1")
    cells = {Cell(size, method, "controlled") for size in SIZES for method in METHODS} | set(found)
    order = sorted(
        cells, key=lambda cell: (SIZES.index(cell.size), METHODS.index(cell.method), READING_ORDER.index(cell.reading))
    )
    lines, rows = [], []
    for cell in order:
        evaluations = found.get(cell, {})
        paper = reported["overall"][cell.size].get(cell.method)
        row: dict[str, object] = {"model": cell.size, "method": cell.method, "reading": cell.reading}
        row["seeds"] = len(evaluations)
        row["evaluations"] = len(next(iter(evaluations.values()))["runs"]) if evaluations else 0
        ours = measurements([evaluations[seed] for seed in sorted(evaluations)]) if evaluations else {}
        for name in COLUMNS:
            value = ours.get(name)
            row |= {
                name: value and value.mean,
                f"{name}_sd_seeds": value and value.sd_seeds,
                f"{name}_sd_evaluations": value and value.sd_runs,
            }
        reasons = "; ".join(dict.fromkeys(what for content in evaluations.values() for what in content["departures"]))
        is_compared = bool(ours) and paper is not None and not reasons
        difference = ours["mean_of_parts"].mean - paper if is_compared else None
        row |= {"paper_overall": paper, "difference": difference, "not_compared_for": reasons}
        rows.append(row)
        number = f"{row['seeds']} x {row['evaluations']}" if ours else NOT_RUN
        measured = [str(ours[name]) if ours else "" for name in COLUMNS]
        last = ["" if paper is None else f"{paper:.2f}", f"{difference:+.2f}" if difference is not None else ""]
        lines.append([cell.size, cell.method, cell.reading, number, *measured, *last, reasons])
    header = ["model", "method", "reading", "n", *COLUMNS.values(), "paper's Overall", "difference", NOT_COMPARED]
    table = markdown(header, lines, left=4)
    notes = [NOTE, *paper_notes(reported), *(f"**{warning}.**" for warning in warnings)]
    notes += [f"`{line}`" for line in _provenance(found)]
    return "\n\n".join(["# Table 1: BFCL v4", table, *notes]) + "\n", rows


def _provenance(found: dict[Cell, dict[int, dict[str, Any]]]) -> list[str]:
    lines = []
    for cell, evaluations in sorted(found.items()):
        for seed, content in sorted(evaluations.items()):
            source = content["provenance"]
            text = f"{cell.folder(seed)}: commit {source['commit']}, {source['machine']}, {source['versions']}"
            lines.append(f"{text}; {source['command']}")
    return lines


def write_table(runs: Path, out: Path) -> None:
    """Write ``table1.md``, ``table1.csv`` and ``table1.tex``, and print the first."""
    write("table1", out, *make_table(runs))


if __name__ == "__main__":
    command_line(__doc__, write_table)
