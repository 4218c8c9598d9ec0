"""Tables, figures and a page from trainings.

    bash scripts/report.sh RUN... [--out report] [--baseline grpo] [--threshold format=0.9]

RUN is a training's folder (with a metrics.jsonl), or a folder of such folders. Runs that differ in their seed only are
one method with a band. Writes index.html, which opens without a network, figures as PNG and PDF, and each table as
Markdown and LaTeX.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from saw.report import figures, summary, tables
from saw.report.history import LoggedRun, grouped, read_run
from saw.report.page import page
from saw.report.warnings import warnings_of


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="saw.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for the report (report)")
    parser.add_argument("--title", help="of the page (the runs' folder)")
    parser.add_argument("--baseline", help="a method, as the report calls it; others are tested against it")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="OBJECTIVE=VALUE",
        type=_threshold,
        help="steps until the mean reward reaches it; may be repeated",
    )
    arguments = parser.parse_args(argv)
    try:
        arguments.found = [run for given in arguments.runs for run in find(given)]
    except (FileNotFoundError, ValueError) as fault:
        parser.error(str(fault))
    return arguments


def _threshold(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not (name and separator) or number != number:
        raise argparse.ArgumentTypeError(f"{text!r}; expected OBJECTIVE=VALUE, for example format=0.9")
    return name, number


def find(given: Path) -> list[LoggedRun]:
    """The trainings in a folder: itself, or those below it.

    Raises:
        FileNotFoundError: if there is none.
    """
    if given.is_file() or (given / "metrics.jsonl").exists():
        return [read_run(given)]
    below = sorted(path.parent for path in given.glob("**/metrics.jsonl")) if given.is_dir() else []
    if not below:
        raise FileNotFoundError(f"{given}: expected the folder of a training, with a metrics.jsonl in it or below it")
    return [read_run(folder) for folder in below]


def make(
    runs: Sequence[LoggedRun], out: Path, title: str, baseline: str | None = None, thresholds: dict | None = None
) -> Path:
    """Write a report.

    Returns:
        Path: its page.

    Raises:
        KeyError: if no run has the baseline's label.
    """
    groups = grouped(runs)
    shown = [summary.summary(groups, thresholds or {})]
    if baseline:
        shown.append(summary.tests(groups, baseline))
    if (best := summary.front(groups)) is not None:
        shown.append(best)
    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw_all(groups, out)
    text = [f"# {title}"]
    for table in shown:
        text += [f"## {table.title}", tables.markdown(table.header, table.rows, table.left), table.note]
        slug = table.title.split()[0].lower()
        (out / f"{slug}.tex").write_text(tables.latex(table.header, table.rows, table.left))
    for run in runs:
        text += [f"**{run.folder.name}: {found}.**" for found in warnings_of(run)]
    (out / "summary.md").write_text("\n\n".join(part for part in text if part) + "\n")
    (out / "index.html").write_text(page(groups, shown, drawn, title))
    return out / "index.html"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parse(argv)
    title = arguments.title or os.path.commonpath([str(run.folder.resolve()) for run in arguments.found]).split("/")[-1]
    try:
        written = make(arguments.found, arguments.out, title, arguments.baseline, dict(arguments.threshold))
    except KeyError as fault:
        raise SystemExit(fault.args[0]) from None
    print((arguments.out / "summary.md").read_text())
    print(f"page: {written}")


if __name__ == "__main__":
    main()
