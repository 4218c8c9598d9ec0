"""What the paper's tables share: results over seeds and repeated evaluations, and a table made from them."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from saw.report.history import flat
from saw.report.tables import latex, markdown, write_csv
from saw.runs.compose import CONFIGS

NOT_RUN = "not run"
PAPER = Path(__file__).resolve().parents[2] / "results" / "paper.yaml"
#: Heading of the column with the reasons why a measured number is not compared with the paper's.
NOT_COMPARED = "not compared because of"
#: ``evaluation.json`` of each seed.
Evaluations = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """One number, measured several times.

    Attributes:
        values (tuple[tuple[float, ...], ...]): for each seed, the value of each evaluation of its checkpoint.
    """

    values: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds of the means over their evaluations."""
        return statistics.fmean(statistics.fmean(runs) for runs in self.values)

    @property
    def sd_seeds(self) -> float | None:
        """Sample standard deviation over the seeds; None for one seed."""
        return statistics.stdev(statistics.fmean(runs) for runs in self.values) if len(self.values) > 1 else None

    @property
    def sd_runs(self) -> float | None:
        """Sample standard deviation over the evaluations of one checkpoint, pooled over the seeds; None for one."""
        spreads = [statistics.variance(runs) for runs in self.values if len(runs) > 1]
        return statistics.fmean(spreads) ** 0.5 if spreads else None

    def __str__(self) -> str:
        spread = f" ± {self.sd_seeds:.2f}" if self.sd_seeds is not None else ""
        within = f" ({self.sd_runs:.2f})" if self.sd_runs is not None else ""
        return f"{self.mean:.2f}{spread}{within}"


def departures(cell: Mapping[str, Any], evaluation: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """How a training or its evaluation departs from the paper; any departure makes a comparison meaningless.

    Args:
        cell (Mapping[str, Any]): ``cell.json`` of the training.
        evaluation (Mapping[str, Any]): the ``settings`` of its evaluation.
        paper (Mapping[str, Any]): the table's part of ``results/paper.yaml``.
    """
    found = {
        "reading": cell["reading"] != paper["reading"],
        "toy model": cell["size_override"] is not None,
        "overrides": bool(cell["overrides"]),
        "limited evaluation": evaluation["limit"] is not None,
        "judge": "judge" in paper and evaluation["judge"][evaluation["first_judge"]]["model"] != paper["judge"],
    }
    return [what for what, is_so in found.items() if is_so]


def paper_notes(paper: Mapping[str, Any]) -> list[str]:
    """The notes below a table with the paper's numbers.

    Args:
        paper (Mapping[str, Any]): the table's part of ``results/paper.yaml``.
    """
    ours, theirs = (
        dict(flat(yaml.safe_load((CONFIGS / "reading" / f"{name}.yaml").read_text())))
        for name in ("controlled", "as_released")
    )
    keys = [f"`{key}`" for key, value in theirs.items() if ours.get(key) != value]
    return [
        f"Paper: {paper['source']}. We assume that its runs used the reading `{paper['reading']}` (A). A difference is "
        "given only for rows with the same reading, and only if we know of nothing else that differs.",
        f"The reading `as_released` (configs/reading) differs from `controlled` in {', '.join(keys)}.",
        "\n".join(["The paper also says:", "", *(f"- {fact}" for fact in paper["also"])]),
    ]


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One of the paper's tables.

    Attributes:
        name (str): of its files, and of its part of ``results/paper.yaml``.
        title (str): above it.
        note (str): explains its numbers.
        cell (type): of a row's key: a named tuple with keys of ``cell.json`` as fields, the reading last.
        keys (Mapping[str, Sequence[str]]): heading of each field -> its values, in order. A row that was not run is
            listed with the reading ``controlled``.
        evaluation (str): path of the evaluation in a training's folder.
        columns (Mapping[str, str]): number of an evaluation -> heading.
        reported (Mapping[str, str]): number of the paper -> heading.
        compared (tuple[str, str]): the column and the paper's number to compare it with.
        numbers (Callable): gives the columns of each run of an evaluation.
        remarks (Callable): gives remarks on a training, from its name, ``cell.json`` and evaluation.
        left_out (Callable): gives the reason to leave an evaluation out of the table; empty if there is none.
        source (Callable): gives the text before the commit in the line with an evaluation's provenance.
    """

    name: str
    title: str
    note: str
    cell: Any
    keys: Mapping[str, Sequence[str]]
    evaluation: str
    columns: Mapping[str, str]
    reported: Mapping[str, str]
    compared: tuple[str, str]
    numbers: Callable[[Mapping[str, Any]], list[dict[str, float]]]
    remarks: Callable[[str, Mapping[str, Any], Mapping[str, Any]], Iterator[str]]
    left_out: Callable[[Mapping[str, Any]], str] = lambda evaluation: ""
    source: Callable[[Mapping[str, Any]], str] = lambda evaluation: ""

    @property
    def paper(self) -> dict[str, Any]:
        """The paper's numbers."""
        return yaml.safe_load(PAPER.read_text())[self.name]

    def read(self, runs: Path) -> tuple[dict[Any, Evaluations], list[str]]:
        """Evaluations by row and seed, and remarks on them."""
        found: dict[Any, Evaluations] = {}
        remarks = []
        paper = self.paper
        for path in sorted(runs.glob("*/cell.json")):
            evaluation, name = path.parent / self.evaluation, path.parent.name
            if not evaluation.exists():
                continue
            cell, content = json.loads(path.read_text()), json.loads(evaluation.read_text())
            why = self.left_out(content)
            if "reading" not in cell:
                why = "its cell.json does not name the reading it was trained with"
            if why:
                remarks.append(f"**{name} left out: {why}.**")
                continue
            remarks += self.remarks(name, cell, content)
            if cell["overrides"]:
                remarks.append(f"**{name} was trained with {' '.join(cell['overrides'])}.**")
            content["departures"] = departures(cell, content["settings"], paper)
            row = self.cell(*(cell[field] for field in self.cell._fields))
            found.setdefault(row, {})[cell["seed"]] = content
        return found, remarks

    def make(self, runs: Path) -> tuple[str, list[dict[str, object]], str]:
        """The table as Markdown with its notes, as rows for CSV, and as LaTeX.

        Args:
            runs (Path): the reproduction's output folder.
        """
        found, remarks = self.read(runs)
        paper = self.paper
        *others, _ = self.keys.values()
        cells = {self.cell(*parts, "controlled") for parts in product(*others)} | set(found)
        order = sorted(cells, key=self._place)
        rows, lines = zip(*(self._row(cell, found.get(cell, {}), paper) for cell in order), strict=True)
        header = [*self.keys, "n", *self.columns.values(), *self.reported.values(), "difference", NOT_COMPARED]
        sources = [
            f"`{cell.folder(seed)}: {self.source(content)}{_provenance(content['provenance'])}`"
            for cell in order
            for seed, content in sorted(found.get(cell, {}).items())
        ]
        left = len(self.keys) + 1
        text = [f"# {self.title}", markdown(header, lines, left), self.note, *paper_notes(paper), *remarks, *sources]
        return "\n\n".join(text) + "\n", list(rows), latex(header, lines, left)

    def _place(self, cell: Any) -> tuple[int, ...]:
        return tuple(values.index(part) for part, values in zip(cell, self.keys.values(), strict=True))

    def _row(self, cell: Any, evaluations: Evaluations, paper: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A row for the CSV, and its cells in the table."""
        contents = [evaluations[seed] for seed in sorted(evaluations)]
        number = len(contents[0]["runs"]) if contents else 0
        seeds = [self.numbers(content) for content in contents]
        ours = {
            name: Measurement(tuple(tuple(run[name] for run in runs) for runs in seeds)) if contents else None
            for name in self.columns
        }
        theirs = {name: _reported(paper[name], cell) for name in self.reported}
        reasons = "; ".join(dict.fromkeys(what for content in contents for what in content["departures"]))
        mine, other = ours[self.compared[0]], theirs[self.compared[1]]
        difference = None if mine is None or other is None or reasons else mine.mean - other
        row = dict(zip(self.keys, cell, strict=True)) | {"seeds": len(contents), "evaluations": number}
        for name, value in ours.items():
            row[name] = value and value.mean
            row[f"{name}_sd_seeds"] = value and value.sd_seeds
            row[f"{name}_sd_evaluations"] = value and value.sd_runs
        row |= {f"paper_{name}": value for name, value in theirs.items()}
        row |= {"difference": difference, "not_compared_for": reasons}
        line = [*cell, f"{len(contents)} x {number}" if contents else NOT_RUN]
        line += ["" if value is None else str(value) for value in ours.values()]
        line += ["" if value is None else f"{value:.2f}" for value in theirs.values()]
        return row, [*line, "" if difference is None else f"{difference:+.2f}", reasons]

    def write(self, runs: Path, out: Path) -> None:
        """Write ``NAME.md``, ``NAME.csv`` and ``NAME.tex``, and print the first."""
        text, rows, tabular = self.make(runs)
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{self.name}.md").write_text(text)
        write_csv(out / f"{self.name}.csv", rows)
        (out / f"{self.name}.tex").write_text(tabular)
        print(text)

    def main(self, description: str | None) -> None:
        """Command line."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--runs", type=Path, required=True, help="the reproduction's output folder")
        parser.add_argument("--out", type=Path, help="folder for the tables (that of --runs)")
        arguments = parser.parse_args()
        self.write(arguments.runs, arguments.out or arguments.runs)


def _reported(values: Mapping[str, Any], cell: Any) -> float | None:
    """The paper's number for a row of the table, found by its model (if there are several) and its method."""
    *models, method, _ = cell
    for model in models:
        values = values[model]
    return values.get(method)


def _provenance(source: Mapping[str, str]) -> str:
    return f"commit {source['commit']}, {source['machine']}, {source['versions']}; {source['command']}"
