"""The sweep's plan; the stages themselves are tested in test_stages.py."""

import pytest

from recipes.ablations import sweep
from saw.verl.settings import check_config
from tests.configs import CONFIGS, compose


def test_one_training_for_each_method_and_seed(tmp_path):
    options = ["--method", "gdpo", "--method", "saw_gdpo,stability=ema,saw.options.ema=0.3", "--seeds", "1,2"]
    chains = sweep.plan(sweep.parse([*options, "--out", str(tmp_path), "trainer.save_freq=5"]))
    assert list(chains) == [
        "gdpo_seed1",
        "saw_gdpo_stability_ema_saw.options.ema_0.3_seed1",
        "gdpo_seed2",
        "saw_gdpo_stability_ema_saw.options.ema_0.3_seed2",
    ]
    (stage,) = chains["saw_gdpo_stability_ema_saw.options.ema_0.3_seed2"]
    config = compose(*stage.command[2:])
    settings = check_config(config)
    assert (settings.method, settings.options.ema, settings.options.seed) == ("saw_gdpo", 0.3, 2)
    assert (config.trainer.save_freq, config.data.seed) == (5, 2)


@pytest.mark.parametrize("group", ["informativeness", "stability"])
def test_every_file_of_the_groups_composes(group):
    names = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    assert names
    plain = check_config(compose("experiment=quickstart")).options
    for name in names:
        options = check_config(compose("experiment=quickstart", f"{group}={name}")).options
        assert (options == plain) == (name == "cv")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--method", "ppo"], "--method ppo: expected one of grpo"),
        (["--method", "gdpo,ema"], "'ema' is no Hydra override"),
        (["--method", "gdpo", "x"], "'x' is no Hydra override"),
        (["--method", "gdpo", "--experiment", "none"], "no such file in configs/experiment"),
        (["--method", "gdpo", "--seeds", "a"], "'a': expected numbers"),
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
    assert sweep.toys("toolrl/1.5b_gdpo") == []
    (tmp_path / "quickstart" / "data").mkdir(parents=True)
    (tmp_path / "quickstart" / "data" / "test.parquet").touch()
    assert [stage.name for stage in sweep.toys("quickstart")] == ["toy_model"]
