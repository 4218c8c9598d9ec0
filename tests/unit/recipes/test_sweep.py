"""The sweep's plan; the stages themselves are tested in test_stages.py."""

import re
import shlex

import pytest

from recipes.ablations import sweep
from saw.verl.config_checks import check_config
from tests.configs import compose
from tests.conftest import ROOT


def test_one_training_for_each_method_and_seed(tmp_path):
    options = ["--method", "gdpo", "--method", "saw_gdpo,saw.options.floor=0.1,saw.options.ema=0.3", "--seeds", "1,2"]
    chains = sweep.plan(sweep.parse([*options, "--out", str(tmp_path), "trainer.save_freq=5"]))
    assert list(chains) == [
        "gdpo_seed1",
        "saw_gdpo_saw.options.floor_0.1_saw.options.ema_0.3_seed1",
        "gdpo_seed2",
        "saw_gdpo_saw.options.floor_0.1_saw.options.ema_0.3_seed2",
    ]
    (stage,) = chains["saw_gdpo_saw.options.floor_0.1_saw.options.ema_0.3_seed2"]
    config = compose(*stage.command[2:])
    settings = check_config(config)
    assert (settings.method, settings.options.ema, settings.options.seed) == ("saw_gdpo", 0.3, 2)
    assert (config.trainer.save_freq, config.data.seed) == (5, 2)


def test_commas_in_brackets_belong_to_a_value():
    assert sweep.split("static_gdpo,a.b=[1,3],c={d:1,e:[2,3]},f=1") == [
        "static_gdpo",
        "a.b=[1,3]",
        "c={d:1,e:[2,3]}",
        "f=1",
    ]
    assert sweep.split("gdpo") == ["gdpo"]


def commands_of_the_page() -> list[str]:
    page = (ROOT / "recipes" / "ablations" / "README.md").read_text()
    commands = re.findall(r"^\| .* \| `(--method .*?)`.* \|$", page, flags=re.MULTILINE)
    assert len(commands) >= 10
    return commands


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_of_the_page())
def test_every_command_of_the_page_is_one_that_trains(command):
    chains = sweep.plan(sweep.parse(shlex.split(command)))
    assert len(chains) == command.count("--method")
    for (stage,) in chains.values():
        assert check_config(compose(*stage.command[2:])) is not None


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--method", "ppo"], "--method ppo: expected one of grpo"),
        (["--method", "gdpo,ema"], "'ema' is not a Hydra override"),
        (["--method", "gdpo", "x"], "'x' is not a Hydra override"),
        (["--method", "gdpo,a=[1"], "'a=[1' is not a Hydra override"),
        (["--method", "gdpo,"], "'' is not a Hydra override"),
        (["--method", "gdpo", "a=1,2"], "'a=1,2' has several values"),
        (["--method", "gdpo", "--experiment", "none"], "no such file in configs/experiment"),
        *(
            (["--method", "gdpo", f"--seeds={seeds}"], f"{seeds!r}: expected whole numbers from 0")
            for seeds in ("a", "", "1,", "-1", "1,-2", "1.5", "1,2,1", "nan", "4294967296", "9" * 5000, "1_0")
        ),
        (["--method", "gdpo", "--hours", "-1"], "'-1': expected a number of hours above 0"),
        (["--method", "gdpo", "--hours", "nan"], "'nan': expected a number of hours above 0"),
        (["--method", "gdpo", "--hours", "1_0"], "'1_0': expected a number of hours above 0"),
        (["--method", "gdpo", "--hours", "soon"], "'soon': expected a number of hours above 0"),
        ([], "--method"),
    ],
)
def test_wrong_options_are_refused(options, fault, capsys):
    with pytest.raises(SystemExit):
        sweep.parse(options)
    assert fault in capsys.readouterr().err


def test_the_quickstart_s_toys_are_made_where_they_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SAW_RUNS", str(tmp_path))
    assert [stage.name for stage in sweep.toys("quickstart")] == ["toy_rows", "toy_model"]
    assert sweep.toys("toolrl") == []
    (tmp_path / "quickstart" / "data").mkdir(parents=True)
    (tmp_path / "quickstart" / "data" / "test.parquet").touch()
    assert [stage.name for stage in sweep.toys("quickstart")] == ["toy_model"]
