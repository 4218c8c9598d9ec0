"""What the quickstart and the sweep share: toy data, a toy model, and the curves of several trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recipes.common.stages import Stage
from saw.report import plot_curves, read_history, summary_table
from saw.report.history import LOG


def toy_rows(folder: Path) -> list[Stage]:
    """The stage that makes the toy rows, if they do not exist."""
    if (folder / "test.parquet").exists():
        return []
    return [Stage("toy_rows", folder.parent, ("-m", "data_prep.toy_toolrl", "--out", str(folder)))]


def toy_model(folder: Path, *options: str) -> list[Stage]:
    """The stage that makes a toy model, if it does not exist."""
    if (folder / "model.safetensors").exists():
        return []
    command = ("-m", "recipes.quickstart.toy_model", "--out", str(folder), *options)
    return [Stage("toy_model", folder.parent, command)]


def curves(finished: Mapping[str, Stage], picture: Path, title: str) -> str:
    """Draw the curves of finished trainings, and return a table of their rewards."""
    histories = {name: read_history(stage.folder / LOG) for name, stage in finished.items()}
    plot_curves(histories, picture, title)
    return summary_table(histories)
