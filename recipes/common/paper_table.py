"""What the tables of the paper share: results over seeds and repeated evaluations, and how a table is written."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saw.report.tables import latex_of, write_csv
from saw.runs.compose import CONFIGS

NOT_RUN = "not run"
PAPER = Path(__file__).resolve().parents[2] / "results" / "paper.yaml"
#: Heading of the column that says why a measured cell is not set against the paper's.
NOT_COMPARED = "not compared, for its"


@dataclass(frozen=True)
class Measurement:
    """One number, measured several times.

    Attributes:
        values (tuple[tuple[float, ...], ...]): for each seed, the value of each evaluation of its checkpoint.
    """

    values: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds, of the means over their evaluations."""
        return statistics.fmean(statistics.fmean(runs) for runs in self.values)

    @property
    def sd_seeds(self) -> float | None:
        """Sample standard deviation over the seeds; None where there is one."""
        return statistics.stdev(statistics.fmean(runs) for runs in self.values) if len(self.values) > 1 else None

    @property
    def sd_runs(self) -> float | None:
        """Sample standard deviation over the evaluations of one checkpoint, pooled over the seeds; None without."""
        spreads = [statistics.variance(runs) for runs in self.values if len(runs) > 1]
        return statistics.fmean(spreads) ** 0.5 if spreads else None

    def __str__(self) -> str:
        spread = f" ± {self.sd_seeds:.2f}" if self.sd_seeds is not None else ""
        within = f" ({self.sd_runs:.2f})" if self.sd_runs is not None else ""
        return f"{self.mean:.2f}{spread}{within}"


def paper_of(table: str) -> dict[str, Any]:
    """What the paper reports of a table: its part of ``results/paper.yaml``."""
    return yaml.safe_load(PAPER.read_text())[table]


def departures(cell: Mapping[str, Any], evaluation: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """What one training or its evaluation does otherwise than the paper: then a difference would say nothing.

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
    """What stands below a table of the paper's numbers.

    Args:
        paper (Mapping[str, Any]): the table's part of ``results/paper.yaml``.
    """
    ours, theirs = (
        dict(_flat(yaml.safe_load((CONFIGS / "reading" / f"{name}.yaml").read_text())))
        for name in ("controlled", "as_released")
    )
    keys = [f"`{key}`" for key, value in theirs.items() if ours.get(key) != value]
    return [
        f"Paper: {paper['source']}. Its numbers are taken to be of the reading `{paper['reading']}` (A): there is a "
        "difference only where ours are of the same, and nothing else is known to differ.",
        f"The reading `as_released` (configs/reading) sets otherwise than `controlled`: {', '.join(keys)}.",
        "\n".join(["The paper also says:", "", *(f"- {fact}" for fact in paper["also"])]),
    ]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def write(name: str, out: Path, text: str, rows: Sequence[dict[str, object]]) -> None:
    """Write a table as Markdown, CSV and LaTeX, and print the first.

    Args:
        name (str): of the files.
        out (Path): their folder.
        text (str): Markdown with the table in it.
        rows (Sequence[dict]): for the CSV.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    write_csv(out / f"{name}.csv", rows)
    (out / f"{name}.tex").write_text(latex_of(text))
    print(text)


def command_line(description: str | None, write_table: Callable[[Path, Path], None]) -> None:
    """Make a table from the runs that are there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the folder that the reproduction wrote")
    parser.add_argument("--out", type=Path, help="folder for the tables; that of --runs if absent")
    arguments = parser.parse_args()
    write_table(arguments.runs, arguments.out or arguments.runs)
