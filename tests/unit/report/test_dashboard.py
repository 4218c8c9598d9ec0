"""The wandb dashboard, offline: against the library's own schema, and against a server that this test plays."""

import json
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from wandb_workspaces.workspaces import internal

from saw.method.metrics import training_metrics
from saw.report import dashboard


def test_the_definition_is_one_by_the_library_s_schema(tmp_path, capsys):
    path = tmp_path / "board.json"
    dashboard.main(["--entity", "me", "--project", "p", "--objectives", "a, b", "--offline", str(path)])
    view = internal.View.model_validate_json(path.read_text())
    assert (view.entity, view.project, view.display_name) == ("me", "p", "SAW")
    assert dashboard.definition(dashboard.read(path)) == json.loads(path.read_text())
    path.write_text("{}")
    with pytest.raises(ValidationError):
        dashboard.read(path)


def panels(board):
    sections = dashboard.definition(board)["spec"]["section"]["panelBankConfig"]["sections"]
    return {panel["config"]["chartTitle"]: panel["config"] for section in sections for panel in section["panels"]}


def test_every_panel_groups_by_method_and_shows_seeds_as_a_band():
    found = panels(dashboard.workspace("me", "p", ["a", "b"]))
    assert len(found) >= 24
    for config in found.values():
        assert (config["groupBy"], config["groupAgg"], config["groupArea"]) == ("saw.value.method", "mean", "stderr")
    assert found["b: CV"]["metrics"] == ["saw/b/cv"]


def test_its_metrics_are_those_that_the_trainer_logs():
    import torch

    import saw

    advantage = saw.compute_advantage(torch.rand(4, 1), "ppqq", torch.ones(4, 2), method="saw_grpo")
    logged = training_metrics(advantage, ["a"])
    wanted = {metric for config in panels(dashboard.workspace("", "p", ["a"])).values() for metric in config["metrics"]}
    assert {metric for metric in wanted if metric.startswith("saw/")} <= logged.keys()


def test_a_second_call_updates_what_the_first_created(monkeypatch):
    stored: dict[str, dict] = {}

    def server(api, query, variables=None):
        if "mutation" in query:
            identity = variables.get("id") or f"id{len(stored)}"
            stored[identity] = variables
            return {"upsertView": {"view": {"id": identity, "name": variables["name"]}, "inserted": True}}
        views = [
            {"node": {"id": identity, "displayName": view["displayName"], "spec": view["spec"]}}
            for identity, view in stored.items()
            if view["name"] == variables["viewName"]
        ]
        return {"project": {"allViews": {"edges": views}}}

    monkeypatch.setattr(internal, "execute_graphql", server)
    monkeypatch.setattr("wandb.Api", lambda: None)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://example.org")
    address = dashboard.save(dashboard.workspace("me", "p", ["a"]))
    assert dashboard.save(dashboard.workspace("me", "p", ["a", "b"])) == address
    assert len(stored) == 1
    assert "saw/b/mean" in next(iter(stored.values()))["spec"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--project", "p", "--objectives", ","], "--objectives is empty"),
        (["--project", "p", "--offline", "nowhere/board.json"], "--offline nowhere/board.json: .*No such file"),
        (["--from", "nowhere.json"], "--from nowhere.json: .*No such file"),
        (["--from", "cut.json"], "(?s)--from cut.json: .*Invalid JSON"),
    ],
)
def test_bad_options_are_named(options, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("cut.json").write_text('{"spec"')
    with pytest.raises(SystemExit):
        dashboard.main(options)
    assert re.search(fault, capsys.readouterr().err)


@pytest.mark.parametrize("entity", [[], ["--entity", "me"]])
@pytest.mark.parametrize("key", [None, "abc"])
def test_without_a_login_it_says_how_to_log_in(entity, key, tmp_path, monkeypatch):
    """Kind: the traceback of a library for what a user has to do first."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(SystemExit, match=r"(?s)^saw: .*wandb login, or set WANDB_API_KEY.*--offline FILE"):
        dashboard.main(["--project", "p", *entity])
