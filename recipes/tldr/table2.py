"""Table 2 from the evaluations that are there: Markdown and CSV, ours beside the paper's.

python -m recipes.tldr.table2 --runs runs/tldr
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
from saw.report.tables import markdown

READING_ORDER = tuple(READINGS)
SCORES = ("quality", "conciseness", "total")
COLUMNS = (*SCORES, "missing", "words_mean", "rougeL")
NOTE = """Ours: mean ± standard deviation over seeds (in brackets: over evaluations of one checkpoint); n is seeds x
evaluations. Quality and conciseness are 0 to 10 by the judge that trained the model. Missing: summaries without a
verdict, which are in no mean. The difference is ours less the paper's total."""


@dataclass(frozen=True)
class Cell:
    """One row of the table: a method and a reading."""

    method: str
    reading: str

    def folder(self, seed: int) -> str:
        """Name of the folder of one of its trainings."""
        return f"{self.method}_{self.reading}_seed{seed}"


def measurements(evaluations: list[dict[str, Any]]) -> dict[str, Measurement]:
    """The columns of a row, from ``evaluation.json`` of each seed."""
    seeds = []
    for evaluation in evaluations:
        first = evaluation["settings"]["first_judge"]
        seeds.append([{**run["texts"], **run[first]} for run in evaluation["runs"]])
    return {name: Measurement(tuple(tuple(float(run[name]) for run in runs) for runs in seeds)) for name in COLUMNS}


def read(runs: Path) -> tuple[dict[Cell, dict[int, dict[str, Any]]], list[str]]:
    """Evaluations by row and seed, and what a reader must be told of them."""
    found: dict[Cell, dict[int, dict[str, Any]]] = {}
    notes = []
    paper = paper_of("table2")
    for path in sorted(runs.glob("*/cell.json")):
        cell, evaluation = json.loads(path.read_text()), path.parent / "judged" / "evaluation.json"
        if not evaluation.exists():
            continue
        content = json.loads(evaluation.read_text())
        if "reading" not in cell:
            notes.append(f"{path.parent.name} left out: its cell.json does not say which reading it was trained in")
            continue
        settings, name = content["settings"], path.parent.name
        if cell["size_override"] is not None:
            notes.append(f"**{name} is a rehearsal with a toy model and a stand-in judge: its numbers mean nothing.**")
        if settings["limit"] is not None:
            notes.append(f"**{name} was evaluated on {settings['rows']} posts only.**")
        if cell["overrides"]:
            notes.append(f"**{name} was trained with {' '.join(cell['overrides'])}.**")
        if settings["second_judge"]:
            notes += [f"{name}, run {i}: {_agreement(run)}" for i, run in enumerate(content["runs"], start=1)]
        content["departures"] = departures(cell, settings, paper)
        found.setdefault(Cell(cell["method"], cell["reading"]), {})[cell["seed"]] = content
    return found, notes


def _agreement(run: dict[str, Any]) -> str:
    parts = [
        f"{name}: equal {values['equal']:.2f}, within one {values['within_one']:.2f}, "
        f"Spearman {values['spearman']:.2f}, second less first {values['mean_difference']:+.2f}, n {values['n']}"
        for name, values in run["agreement"].items()
    ]
    return "agreement of the two judges: " + "; ".join(parts)


def make_table(runs: Path) -> tuple[str, list[dict[str, object]]]:
    """The table as Markdown, and its rows for CSV.

    Args:
        runs (Path): the folder that the reproduction wrote.
    """
    found, notes = read(runs)
    reported = paper_of("table2")
    cells = {Cell(method, "controlled") for method in METHODS} | set(found)
    lines, rows = [], []
    for cell in sorted(cells, key=lambda cell: (METHODS.index(cell.method), READING_ORDER.index(cell.reading))):
        evaluations = found.get(cell, {})
        ours = measurements([evaluations[seed] for seed in sorted(evaluations)]) if evaluations else {}
        number = len(next(iter(evaluations.values()))["runs"]) if evaluations else 0
        row: dict[str, object] = {
            "method": cell.method,
            "reading": cell.reading,
            "seeds": len(evaluations),
            "evaluations": number,
        }
        for name in COLUMNS:
            value = ours.get(name)
            row[name] = value and value.mean
            row[f"{name}_sd_seeds"] = value and value.sd_seeds
            row[f"{name}_sd_evaluations"] = value and value.sd_runs
        paper = {name: reported[name].get(cell.method) for name in SCORES}
        reasons = "; ".join(dict.fromkeys(what for content in evaluations.values() for what in content["departures"]))
        is_compared = bool(ours) and paper["total"] is not None and not reasons
        difference = ours["total"].mean - paper["total"] if is_compared else None
        last = {"difference": difference, "not_compared_for": reasons}
        rows.append({**row, **{f"paper_{name}": value for name, value in paper.items()}, **last})
        theirs = [f"{value:.2f}" if value is not None else "" for value in paper.values()]
        n = f"{len(evaluations)} x {number}" if ours else NOT_RUN
        measured = [str(ours[name]) if ours else "" for name in COLUMNS]
        gap = "" if difference is None else f"{difference:+.2f}"
        lines.append([cell.method, cell.reading, n, *measured, *theirs, gap, reasons])
    header = ["method", "reading", "n", *SCORES, "missing", "words", "ROUGE-L", *(f"paper's {name}" for name in SCORES)]
    table = markdown([*header, "difference", NOT_COMPARED], lines, left=3)
    text = ["# Table 2: summaries of Reddit posts", table, NOTE, *paper_notes(reported), *notes]
    for cell, evaluations in found.items():
        for seed, content in sorted(evaluations.items()):
            source = content["provenance"]
            judges = ", ".join(f"{name} ({judge['model']})" for name, judge in content["settings"]["judge"].items())
            line = f"{cell.folder(seed)}: judged by {judges}; commit {source['commit']}, {source['machine']}, "
            text.append(f"`{line}{source['versions']}; {source['command']}`")
    return "\n\n".join(text) + "\n", rows


def write_table(runs: Path, out: Path) -> None:
    """Write ``table2.md``, ``table2.csv`` and ``table2.tex``, and print the first."""
    write("table2", out, *make_table(runs))


if __name__ == "__main__":
    command_line(__doc__, write_table)
