"""Creates or updates a wandb dashboard (a workspace) in a project of yours.

    saw dashboard --entity NAME --project saw_toolrl [--objectives format,correctness]
    saw dashboard --project saw_toolrl --offline dashboard.json

Needs wandb's library for workspaces (wandb-workspaces). Runs are grouped by method, and a line's band is its standard
error over seeds. An existing dashboard is updated. ``--offline`` writes the definition to a file; ``--from
dashboard.json`` creates the dashboard later, on a machine that can reach wandb.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces import internal

from saw.report.figures import COSTS

NAME = "SAW"
#: What to do if wandb can't be reached, or refuses. WANDB_MODE=offline has no effect: a dashboard is only at wandb.
REMEDY = (
    "the dashboard was not saved at wandb: log in with wandb login, or set WANDB_API_KEY; or write it to a file with "
    "--offline FILE, and send that with --from FILE from a machine that is logged in"
)
#: wandb's name for the view, by which a later call finds it.
VIEW = "nw-sawdashboard-v"
#: Section -> heading of a panel -> metric of each objective, with ``*`` for the objective's name.
OF_OBJECTIVES: dict[str, dict[str, str]] = {
    "Rewards": {"mean reward in training": "saw/*/mean", "mean reward in validation": "saw-val/*/mean"},
    "Weights": {"weight": "saw/*/weight", "weight before smoothing": "saw/*/proposed_weight", "CV": "saw/*/cv"},
    "Signal": {
        "share of groups without spread": "saw/*/zero_spread",
        "missing rewards": "saw/*/missing",
        "standard deviation": "saw/*/std",
    },
}
#: Section -> heading of a panel -> metrics.
OTHERS: dict[str, dict[str, list[str]]] = {
    "Training": {
        "advantages": ["critic/advantages/mean", "critic/advantages/max", "critic/advantages/min"],
        "KL to the policy that sampled": ["actor/ppo_kl"],
        "KL to the reference": ["actor/kl_loss"],
        "entropy": ["actor/entropy"],
        "gradient norm": ["actor/grad_norm"],
        "tokens per response": ["response_length/mean", "response_length/max"],
    },
    "Time": {"seconds per step, by part": [*COSTS, "timing_s/step"]},
    "Judge": {
        "dollars per step": ["judge/dollars"],
        "requests per step": ["judge/requests"],
        "share from the cache": ["judge/hit_rate"],
        "seconds per sample": ["judge/seconds/mean", "judge/seconds/p95"],
    },
}


def workspace(entity: str, project: str, objectives: Sequence[str]) -> ws.Workspace:
    """The dashboard.

    Args:
        entity (str): wandb's user or team.
        project (str): its project.
        objectives (Sequence[str]): names of the rewards.
    """
    sections = [
        ws.Section(
            name=name,
            is_open=True,
            panels=[
                _lines(f"{objective}: {heading}", [metric.replace("*", objective)])
                for heading, metric in panels.items()
                for objective in objectives
            ],
        )
        for name, panels in OF_OBJECTIVES.items()
    ]
    sections += [
        ws.Section(name=name, is_open=name != "Judge", panels=[_lines(*panel) for panel in panels.items()])
        for name, panels in OTHERS.items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="Step"),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config("saw.method")]),
    )


def _lines(title: str, metrics: Sequence[str]) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x="Step",
        y=list(metrics),
        groupby=wr.Config("saw.method"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
    )


def definition(board: ws.Workspace) -> dict[str, Any]:
    """What wandb's library would send: the view in wandb's schema."""
    return json.loads(board._to_model().model_dump_json(by_alias=True, exclude_none=True))


def read(path: Path) -> ws.Workspace:
    """A dashboard from its definition, checked against the library's schema.

    Raises:
        pydantic.ValidationError: if the file holds no valid view.
    """
    return ws.Workspace._from_model(internal.View.model_validate_json(path.read_text()))


def save(board: ws.Workspace) -> str:
    """Create the dashboard, or update the one that an earlier call created; needs a network and a login.

    Returns:
        str: its URL.
    """
    board._internal_name = VIEW
    # wandb updates a view that has an id, and creates one that has none
    with suppress(ValueError):
        board._internal_id = internal.View.from_name(board.entity, board.project, VIEW).id
    board.save()
    return board.url


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="saw dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", default="", help="wandb's user or team (default: the login's)")
    parser.add_argument("--project", help="wandb's project, trainer.project_name")
    parser.add_argument("--objectives", default="format,correctness", help="separated by commas (ToolRL's)")
    parser.add_argument("--offline", type=Path, metavar="FILE", help="write the definition to FILE, send nothing")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="send what --offline has written")
    arguments = parser.parse_args(argv)
    if arguments.source:
        try:
            board = read(arguments.source)
        except (OSError, ValueError) as fault:
            parser.error(f"--from {arguments.source}: {fault}")
        board.entity, board.project = arguments.entity or board.entity, arguments.project or board.project
    elif arguments.project:
        objectives = [name.strip() for name in arguments.objectives.split(",") if name.strip()]
        if not objectives:
            parser.error("--objectives is empty; expected the names of the rewards, for example format,correctness")
        board = workspace(arguments.entity, arguments.project, objectives)
    else:
        parser.error("expected --project or --from")
    if arguments.offline:
        try:
            arguments.offline.write_text(json.dumps(definition(board), indent=1) + "\n")
        except OSError as fault:
            parser.error(f"--offline {arguments.offline}: {fault}")
        print(f"definition: {arguments.offline}; create it with --from {arguments.offline}")
        return
    try:
        if not board.entity:
            board.entity = wandb.Api().default_entity or parser.error("expected --entity: the login has none")
        print(f"dashboard: {save(board)}")
    except wandb.Error as fault:
        raise SystemExit(f"saw: {fault}\n{REMEDY}") from None


if __name__ == "__main__":
    main()
