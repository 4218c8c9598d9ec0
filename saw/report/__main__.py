"""Tables, figures and a page from trainings.

    bash scripts/report.sh RUN... [--out report] [--baseline grpo] [--threshold format=0.9]

RUN is a training's folder (with a metrics.jsonl), or a folder of such folders. Runs that differ only in their seed are
one method, drawn with a band. Copies of a run, and runs that ended before the others, are left out and named. Writes
index.html, which opens without a network, figures as PNG and PDF, and each table as Markdown and LaTeX.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from saw.records import metrics_file
from saw.report import figures, summary, tables
from saw.report.caveats import warnings_of
from saw.report.history import LOG, LoggedRun, NoSteps, read_run
from saw.report.page import page
from saw.report.selection import select


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="saw report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a training's folder, or a folder of them")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for the report (report)")
    parser.add_argument("--title", help="title of the page (the runs' folder)")
    parser.add_argument("--baseline", help="a method, by its name in the report; others are tested against it")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="OBJECTIVE=VALUE",
        type=_threshold,
        help="count the steps until the mean reward reaches VALUE; may be repeated",
    )
    arguments = parser.parse_args(argv)
    arguments.threshold = list(dict.fromkeys(arguments.threshold))  # repeating one is harmless
    objectives = [name for name, _ in arguments.threshold]
    if twice := [name for name in objectives if objectives.count(name) > 1]:
        parser.error(f"--threshold has two values for {twice[0]}; expected one per objective")
    arguments.found, arguments.without_steps = [], []
    try:
        for folder in dict.fromkeys(folder for given in arguments.runs for folder in find(given)):
            try:
                arguments.found.append(read_run(folder))
            except NoSteps as fault:
                arguments.without_steps.append((folder, str(fault)))
    except (OSError, ValueError) as fault:
        parser.error(str(fault))
    if not arguments.found:
        parser.error("; ".join(fault for _, fault in arguments.without_steps))
    return arguments


def _threshold(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not (name and separator) or not math.isfinite(number) or "_" in value:  # Python reads 0_9 as 9
        raise argparse.ArgumentTypeError(f"{text!r}; expected OBJECTIVE=VALUE, for example format=0.9")
    return name, number


def find(given: Path) -> list[Path]:
    """The trainings in a folder: the folder itself, or those below it.

    Raises:
        FileNotFoundError: if there is none.
    """
    if given.is_file() or metrics_file.exists(given / LOG):
        return [given]
    logs = {log.with_name(LOG) for log in given.rglob(f"{Path(LOG).stem}*") if log.is_file()}
    below = sorted(log.parent for log in logs if metrics_file.exists(log))
    if not below:
        others = sorted(str(log) for log in given.glob("*.jsonl"))
        themselves = f", or the logs themselves: {' '.join(others)}" if others else ""
        there = f"has no {LOG} in it or below it" if given.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{given} {there}; expected the folder of a training (its trainer.default_local_dir), or a folder of such "
            f"folders{themselves}"
        )
    return below


def make(
    runs: Sequence[LoggedRun],
    out: Path,
    title: str,
    baseline: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    without_steps: Sequence[tuple[Path, str]] = (),
) -> Path:
    """Write a report.

    Args:
        runs (Sequence[LoggedRun]): :func:`~saw.report.selection.select` chooses among them.
        out (Path): the report's folder.
        title (str): of the page.
        baseline (str | None): label of the method that others are tested against.
        thresholds (Mapping[str, float] | None): objective -> mean reward to be reached.
        without_steps (Sequence[tuple[Path, str]]): folders without a training step, each with the reason.

    Returns:
        Path: the page.

    Raises:
        KeyError: if no run has the baseline's label, or the objective of a threshold.
    """
    chosen = select(runs)
    shown = [summary.summary(chosen.groups, thresholds or {})]
    if baseline:
        shown.append(summary.tests(chosen.groups, baseline))
    if (best := summary.front(chosen.groups)) is not None:
        shown.append(best)
    remarks: dict[str, list[str]] = {}
    warned = [(name, warning) for name, run in chosen.runs.items() for warning in warnings_of(run)]
    left_out = [(str(folder), f"left out: {fault}") for folder, fault in without_steps]
    for name, remark in [*left_out, *chosen.notes, *warned]:
        remarks.setdefault(name, []).append(remark)
    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw_all(chosen.groups, out)
    text = [f"# {title}", *(table.section() for table in shown)]
    for table in shown:
        slug = table.title.split()[0].lower()
        _write(out / f"{slug}.tex", tables.latex(table.header, table.rows, table.left))
    text += [f"**{name}: {remark}.**" for name, found in remarks.items() for remark in found]
    _write(out / "summary.md", "\n\n".join(text) + "\n")
    _write(out / "index.html", page(chosen, shown, drawn, title, remarks))
    return out / "index.html"


def _write(path: Path, text: str) -> None:
    """Write a text; a lone surrogate, which JSON allows and UTF-8 does not, is written as its number."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parse(argv)
    title = arguments.title or os.path.commonpath([str(run.folder.resolve()) for run in arguments.found]).split("/")[-1]
    try:
        written = make(
            arguments.found,
            arguments.out,
            title,
            arguments.baseline,
            dict(arguments.threshold),
            arguments.without_steps,
        )
    except KeyError as fault:
        raise SystemExit(fault.args[0]) from None
    print((arguments.out / "summary.md").read_text(encoding="utf-8"))
    print(f"page: {written}")


if __name__ == "__main__":
    main()
