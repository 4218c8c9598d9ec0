"""One self-contained HTML page, for readers without wandb: opens without a network, readable on a phone."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.io as pio
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from saw.report.figures import COLOURS, COSTS, Curve, logged, median_of, over_seeds
from saw.report.history import PREFIX, LoggedRun, differences, objectives_of
from saw.report.selection import Selection
from saw.report.summary import Table

#: Training metric of an objective -> heading of its curves.
OF_OBJECTIVES = {
    "mean": "mean reward",
    "weight": "weight",
    "cv": "CV",
    "zero_spread": "share of groups without spread",
    "missing": "missing rewards",
}
#: Other metrics, each shown if it was logged.
OTHERS = {
    "actor/entropy": "entropy",
    "actor/ppo_kl": "KL to the policy that sampled",
    "actor/kl_loss": "KL to the reference",
    "actor/grad_norm": "gradient norm",
    "response_length/mean": "tokens per response",
    "critic/advantages/max": "largest advantage",
    "timing_s/step": "seconds per step",
    "judge/dollars": "judge, dollars per step",
}
#: At most this many samples are shown per run, the last ones.
SAMPLES = 12


def page(
    chosen: Selection,
    tables: Sequence[Table],
    figures: Sequence[Path],
    title: str,
    remarks: Mapping[str, Sequence[str]],
) -> str:
    """The page's HTML.

    Args:
        chosen (Selection): the runs.
        tables (Sequence[Table]): shown first.
        figures (Sequence[Path]): image files, listed at the end.
        title (str): of the page.
        remarks (Mapping[str, Sequence[str]]): name of a run or method -> warnings; shown on top.
    """
    groups, runs = chosen.groups, chosen.runs
    sections = []
    for objective in objectives_of(run.history for group in groups.values() for run in group):
        charts = [
            _chart(
                f"{objective}: {heading}",
                _curves(groups, f"{PREFIX}{objective}/{what}"),
                zeros=what != "missing",  # show a reward that is always 0, but no chart if nothing is missing
            )
            for what, heading in OF_OBJECTIVES.items()
        ]
        charts.insert(1, _chart(f"{objective}: mean reward in validation", _validation(groups, objective)))
        sections.append((objective, [chart for chart in charts if chart]))
    others = [_chart(heading, _curves(groups, metric)) for metric, heading in OTHERS.items()]
    sections.append(("training", [chart for chart in [*others, _cost(groups)] if chart]))
    environment = Environment(loader=PackageLoader("saw.report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(
        title=title,
        plotly=Markup(get_plotlyjs()),
        tables=tables,
        sections=[(name, [Markup(chart) for chart in charts]) for name, charts in sections],
        remarks=remarks,
        names=list(runs),
        differences=differences(list(runs.values())),
        samples={name: rows[-SAMPLES:] for name, run in runs.items() if (rows := run.samples())},
        provenance={name: run.info.get("provenance", {}) for name, run in runs.items()},
        figures=[path.name for path in figures],
    )


def _validation(groups: Mapping[str, Sequence[LoggedRun]], objective: str) -> dict[str, Curve]:
    def means(run: LoggedRun) -> dict[int, float]:
        found = {step: metrics.get(f"saw-val/{objective}/mean", math.nan) for step, metrics in run.validation.items()}
        return {step: mean for step, mean in found.items() if mean == mean}

    return {label: over_seeds(runs, means) for label, runs in groups.items()}


def _curves(groups: Mapping[str, Sequence[LoggedRun]], metric: str) -> dict[str, Curve]:
    return {label: over_seeds(runs, lambda run: logged(run, metric)) for label, runs in groups.items()}


def _chart(title: str, curves: Mapping[str, Curve], zeros: bool = False) -> str:
    """A zoomable chart, one line per method with its standard error; empty without data, or if all values are 0."""
    if not any(len(mean) if zeros else mean.any() for _, mean, _ in curves.values()):
        return ""
    traces = []
    for place, (label, curve) in enumerate(curves.items()):
        steps, mean, error = (values.tolist() for values in curve)
        if not steps:
            continue
        colour = COLOURS[place % len(COLOURS)]
        if any(error):
            upper = [m + e for m, e in zip(mean, error, strict=True)]
            lower = [m - e for m, e in zip(mean, error, strict=True)]
            traces.append(
                {
                    "type": "scatter",
                    "x": steps + steps[::-1],
                    "y": upper + lower[::-1],
                    "fill": "toself",
                    "fillcolor": colour,
                    "opacity": 0.18,
                    "line": {"width": 0},
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": label,
                }
            )
        line = {"type": "scatter", "mode": "lines", "line": {"color": colour}, "name": label, "legendgroup": label}
        traces.append({**line, "x": steps, "y": mean})
    return _html(traces, {"xaxis": {"title": {"text": "training step"}}}, title)


def _cost(groups: Mapping[str, Sequence[LoggedRun]]) -> str:
    traces = []
    for place, (metric, heading) in enumerate(COSTS.items()):
        seconds = [median_of(runs, metric) for runs in groups.values()]
        if any(seconds):
            marker = {"color": COLOURS[place % len(COLOURS)]}
            bar = {"type": "bar", "orientation": "h", "marker": marker, "name": heading}
            traces.append({**bar, "x": seconds, "y": list(groups)})
    if not traces:
        return ""
    layout = {"barmode": "stack", "xaxis": {"title": {"text": "seconds per step, medians"}}}
    return _html(traces, layout, "seconds per step, by part")


@functools.cache
def _template() -> dict[str, Any]:
    return pio.templates["plotly_white"].to_plotly_json()


def _html(traces: list[dict[str, Any]], layout: dict[str, Any], title: str) -> str:
    """A chart of plotly.js's own JSON: plotly's classes would check it, which takes most of the time of a page."""
    layout = {
        **layout,
        "title": {"text": html.escape(title), "font": {"size": 14}},
        "template": _template(),
        "height": 320,
        "margin": {"l": 50, "r": 10, "t": 40, "b": 40},
        "legend": {"orientation": "h", "y": -0.25},
        "showlegend": True,
    }
    config = {"responsive": True, "displayModeBar": False}  # no toolbar over the title; dragging still zooms
    chart = {"data": traces, "layout": layout}
    return pio.to_html(chart, full_html=False, include_plotlyjs=False, config=config, validate=False)
