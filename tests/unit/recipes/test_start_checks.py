"""What a study or a recipe checks of all its trainings before its first stage runs."""

import sys

import pytest

from recipes.ablations import sweep
from recipes.common import reproduce
from recipes.common.stages import Stage, check
from recipes.quickstart import run as quickstart
from recipes.study import lean_study, smollm2_study
from recipes.tldr import reproduce as table2
from recipes.toolrl import reproduce as table1

#: Command -> its module and arguments; none of them has been run in an empty folder.
COMMANDS = {
    "quickstart": (quickstart, ["--method", "grpo"]),
    "quickstart, smollm2": (quickstart, ["--method", "grpo", "--model", "smollm2"]),
    "sweep": (sweep, ["--method", "grpo"]),
    "sweep, dry run": (sweep, ["--method", "grpo", "--dry-run"]),
    "study": (smollm2_study, ["--method", "grpo"]),
    "table 1": (table1, ["--rehearse"]),
    "table 2": (table2, ["--rehearse"]),
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder of all runs, where no stage may run."""
    monkeypatch.setenv("SAW_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SAW_PLATFORM", "cpu")
    monkeypatch.setenv("SAW_BFCL_VENV", sys.prefix)

    def run(stage, label=""):
        raise AssertionError(f"{stage.name} runs")

    monkeypatch.setattr(Stage, "run", run)
    return tmp_path / "runs"


def written(folder) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nosuch.key=1", ["nosuch"]),
        ("trainer.logger=[console]", ["trainer.logger is ['console']", "trainer.logger=[console,file]"]),
    ],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_training_that_cannot_start_is_refused_before_anything_is_made(
    runs, monkeypatch, capsys, name, override, words
):
    """Kind: a model is made for minutes, or a training runs to its end, before the fault shows."""
    module, options = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", [name, *options, override])
    with pytest.raises(SystemExit) as ended:
        module.main()
    said = str(ended.value) + capsys.readouterr().err  # table 2 lists it with all that is missing
    for word in words:
        assert word in said
    assert written(runs) == []


@pytest.mark.parametrize("name", ["table 1", "table 2"])
def test_a_dry_run_of_a_table_refuses_what_the_doctor_does_not_check(runs, monkeypatch, name):
    module, options = COMMANDS[name]
    monkeypatch.setattr(reproduce, "diagnose", lambda *_: True)
    monkeypatch.setattr(sys, "argv", [name, *options, "--dry-run", "trainer.logger=[console]"])
    with pytest.raises(SystemExit, match=r"trainer\.logger is \['console'\]"):
        module.main()


@pytest.mark.parametrize(
    ("module", "options", "key", "instead"),
    [
        *((sweep, ["--method", "grpo"], *row) for row in sweep.TOLD_APART_BY.items()),
        *((smollm2_study, [], *row) for row in smollm2_study.OWN.items()),
        *((lean_study, [], *row) for row in sweep.TOLD_APART_IN_A_STUDY.items()),
        *((quickstart, [], *row) for row in quickstart.OWN.items()),
    ],
)
def test_an_override_of_what_the_command_sets_is_refused(runs, monkeypatch, capsys, module, options, key, instead):
    """Kind: the folder of seed 1 held a training of seed 5, or the override counted for nothing."""
    section, _, name = key.rpartition(".")
    given = [f"{key}=5", f"++{key}=5", *([f"{section}={{{name}: 5}}"] if section else [])]
    for override in given:
        monkeypatch.setattr(sys, "argv", ["command", *options, override])
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 2
        assert f"{override!r} sets {key}, which this command sets itself; use {instead}" in capsys.readouterr().err
    assert written(runs) == []


@pytest.mark.parametrize("override", ["~data", "data=null", "~trainer", "~saw"])
def test_an_override_that_removes_what_the_command_sets_is_refused(capsys, override):
    with pytest.raises(SystemExit):
        sweep.parse(["--method", "grpo", override])
    assert f"{override!r} removes " in capsys.readouterr().err


def test_a_method_s_own_override_is_refused_too(runs, capsys):
    with pytest.raises(SystemExit):
        sweep.parse(["--method", "gdpo,data.seed=5"])
    assert "'data.seed=5' sets data.seed" in capsys.readouterr().err


def training(folder, *overrides: str) -> Stage:
    return Stage("train", folder, ("-m", "saw.runs.train", "experiment=quickstart", *overrides), trains=True)


@pytest.mark.parametrize("logger", ["null", "[]", "wandb", "[console,wandb]"])
def test_every_training_is_checked(runs, logger):
    good, bad = training(runs / "good"), training(runs / "bad", f"trainer.logger={logger}")
    with pytest.raises(SystemExit, match=r"trainer\.logger is .*'file'.*the training bad"):
        check([], {"good": [good], "bad": [bad]})


@pytest.mark.parametrize("logger", ["file", "[file]", "[console,file,wandb]"])
def test_a_training_that_logs_to_its_file_passes(runs, logger):
    check([], {"good": [training(runs / "good", f"trainer.logger={logger}")]})


def test_a_finished_training_is_not_composed_again(runs):
    """Kind: a report of trainings that an older version finished."""
    old = training(runs / "old", "no.longer=1")
    old.folder.mkdir(parents=True)
    (old.folder / "train.done.json").write_text(f'{{"command": {list(old.command)}}}'.replace("'", '"'))
    check([], {"old": [old]})


def test_a_platform_that_cannot_be_used_is_refused(runs, monkeypatch):
    monkeypatch.setenv("SAW_PLATFORM", "tpu")
    with pytest.raises(SystemExit, match="SAW_PLATFORM is 'tpu'"):
        check([], {"one": [training(runs / "one")]})
