"""The quickstart's plan and report, with a stand-in for the training; tests/e2e has the real one."""

import json

import pytest

from data_prep.toy_toolrl import write_splits
from recipes.common.stages import run_all
from recipes.quickstart import run as quickstart
from saw.verl.config_checks import check_config
from tests.configs import compose

#: Logs two steps as SAW's trainer does, and counts its runs.
TRAINING = """
import json, os, pathlib
path = pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"])
with (path.parent / "runs").open("a") as runs:
    runs.write("x")
(path.parent / "run.json").write_text('{"total_steps": 2}')
with path.open("w") as log:
    for step in (1, 2):
        data = {f"saw/format/{what}": step / 4 for what in ("mean", "cv", "weight")} | {"timing_s/step": 1.0}
        log.write(json.dumps({"step": step, "data": data}) + "\\n")
print("ERROR something that verl goes on after")
"""


@pytest.fixture
def plan(tmp_path):
    """A plan's shared stages and chains, the trainings replaced by the stand-in."""

    def of(*options):
        arguments = quickstart.parse(["--out", str(tmp_path / "out"), *options])
        shared, chains = quickstart.plan(arguments)
        for (stage,) in chains.values():
            object.__setattr__(stage, "command", ("-c", TRAINING))
        return arguments, shared, chains

    return of


def test_each_method_trains_with_the_toys_and_the_overrides(tmp_path):
    arguments = quickstart.parse(["--out", str(tmp_path), "--steps", "3", "data.seed=5"])
    shared, chains = quickstart.plan(arguments)
    assert [stage.name for stage in shared] == ["toy_model", "toy_rows"]
    assert list(chains) == list(quickstart.DEFAULT_METHODS)
    for method, (stage,) in chains.items():
        config = compose(*stage.command[2:])
        settings = check_config(config)
        assert (settings.method, settings.options.seed) == (method, 5)
        assert config.trainer.total_training_steps == 3
        assert config.trainer.default_local_dir == str(stage.folder)


def test_what_is_there_is_not_made(tmp_path, toy_model):
    write_splits(tmp_path / "data", 8, 8)
    assert quickstart.plan(quickstart.parse(["--out", str(tmp_path), "--model", str(toy_model)]))[0] == []


def test_rows_of_ones_own_get_the_lengths_that_they_need(tmp_path, toy_model):
    rows, _ = write_splits(tmp_path / "own", 8, 8)
    arguments = quickstart.parse(["--out", str(tmp_path), "--model", str(toy_model), "--data", str(rows)])
    shared, chains = quickstart.plan(arguments)
    assert shared == []
    command = chains["grpo"][0].command
    assert f"data.train_files={rows}" in command
    assert f"data.val_files={rows}" in command
    assert "data.train_batch_size=8" in command
    assert "data.max_prompt_length=64" in command


def test_other_settings_train_in_another_folder(tmp_path):
    folders = {
        quickstart.plan(quickstart.parse(["--out", str(tmp_path), *options]))[1]["grpo"][0].folder
        for options in ([], ["--steps", "3"], ["data.seed=2"])
    }
    assert len(folders) == 3


@pytest.mark.slow
def test_a_finished_training_is_not_done_again_but_with_fresh(plan, capsys):
    for turn, (options, runs) in enumerate([((), "x"), ((), "x"), (("--fresh",), "xx")]):
        arguments, _, chains = plan("--method", "grpo", *options)
        if arguments.fresh:
            chains["grpo"][0].forget()
        run_all([], chains, lambda: quickstart.report(arguments.out, chains, 60.0))  # noqa: B023
        assert (chains["grpo"][0].folder / "runs").read_text() == runs, turn
        printed = capsys.readouterr().out
        assert "| grpo | format | 0.250 | 0.500 | 0.500 | 2 |" in printed
        assert "peak memory of a run:" in printed
        assert "warning: grpo logged: ERROR something" in printed
    assert (arguments.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| grpo | format |" in (arguments.out / "summary.md").read_text()
    assert json.loads((chains["grpo"][0].folder / "train.done.json").read_text())["peak_bytes"] >= 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--steps", "0"], "--steps is 0; expected a number that is at least 1"),
        (["--data", "none.parquet"], "--data none.parquet: there is no such file"),
        (["--model", "none"], "--model none: expected a Hugging Face model folder"),
        (["x"], "'x' is not a Hydra override"),
    ],
)
def test_wrong_options_are_refused(options, fault, capsys):
    with pytest.raises(SystemExit):
        quickstart.parse(options)
    assert fault in capsys.readouterr().err
