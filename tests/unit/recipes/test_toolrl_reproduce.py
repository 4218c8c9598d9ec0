"""The plan of Table 1, and what is checked before it runs."""

import pytest
from omegaconf import OmegaConf

from recipes.common import merge
from recipes.common import reproduce as common
from recipes.toolrl import reproduce
from saw.verl.config_checks import check_config
from tests.configs import compose


@pytest.fixture
def ready(monkeypatch, tmp_path):
    """A machine with four GPUs, disk space and BFCL's environment."""
    monkeypatch.setattr(common, "gpus_of_a_node", lambda: 4)
    monkeypatch.setattr(common, "free_bytes", lambda folder: 1e15)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("SAW_PLATFORM", raising=False)
    (tmp_path / "bfcl" / "bin").mkdir(parents=True)
    (tmp_path / "bfcl" / "bin" / "python").touch()
    monkeypatch.setenv("SAW_BFCL_VENV", str(tmp_path / "bfcl"))
    (tmp_path / "raw.json").write_text("[]")
    return ["--source", str(tmp_path / "raw.json"), "--out", str(tmp_path / "out")]


def test_the_whole_table_is_twelve_cells_of_three_stages(ready):
    arguments = reproduce.parse([*ready, "--seeds", "1,2,3"])
    shared, chains = reproduce.plan(arguments)
    assert [stage.name for stage in shared] == ["data"]
    assert len(chains) == 2 * 6 * 3
    assert all([stage.name for stage in stages] == ["train", "merge", "evaluate"] for stages in chains.values())
    assert len({stage.folder for stages in chains.values() for stage in stages}) == 36
    assert reproduce.check(arguments) == []


def test_a_training_command_composes_with_what_was_asked_for(ready):
    options = [
        "--model",
        "3b",
        "--method",
        "gdpo",
        "--seeds",
        "2",
        "--reading",
        "as_released",
        "--gpus",
        "8",
        "--nodes",
        "2",
    ]
    _, chains = reproduce.plan(reproduce.parse([*ready, *options, "trainer.save_freq=7"]))
    (stages,) = chains.values()
    config = compose("platform=gpu", *stages[0].command[2:])
    assert check_config(config).method == "gdpo"
    assert config.actor_rollout_ref.model.path.endswith("3B-Instruct")
    assert config.algorithm.use_kl_in_reward
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.data.seed) == (2, 8, 2)
    assert config.trainer.save_freq == 7
    assert config.trainer.default_local_dir == str(stages[0].folder)
    OmegaConf.to_container(config, resolve=True)
    assert stages[2].command[-1] == "8"


def test_the_rehearsal_is_the_same_plan_with_a_toy_size(ready):
    shared, chains = reproduce.plan(reproduce.parse(["--rehearse", *ready[2:]]))
    assert [stage.name for stage in shared] == ["toy_rows", "toy_model", "data"]
    (stages,) = chains.values()
    assert [stage.name for stage in stages] == ["train", "merge", "evaluate"]
    config = compose(*stages[0].command[2:])
    assert config.trainer.total_training_steps == 2
    assert config.actor_rollout_ref.rollout.n == 4
    assert config.trainer.n_gpus_per_node == 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--source", "absent.json"], "absent.json: there is no such file"),
        (["--gpus", "8"], "1 nodes x 8 needed, 4 on this machine"),
        (["--nodes", "2"], "RAY_ADDRESS must name a running Ray cluster"),
    ],
)
def test_what_is_missing_is_named(ready, options, fault):
    assert any(fault in line for line in reproduce.check(reproduce.parse([*ready, *options])))


def test_a_cluster_that_cannot_be_reached_is_missing(ready, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert any("RAY_ADDRESS is 'nonsense'; expected" in line for line in reproduce.check(reproduce.parse(ready)))


@pytest.mark.parametrize(
    ("options", "fault"),
    [([], "--source"), (["--source", "absent.json"], "absent.json: there is no such file"), (["--rehearse"], None)],
)
def test_arguments_are_checked_alone(ready, monkeypatch, capsys, options, fault):
    """The script does so before it installs what only a right command needs."""
    never = lambda *_: pytest.fail("more than the arguments was looked at")  # noqa: E731
    monkeypatch.setattr(reproduce, "check", never)
    monkeypatch.setattr(common, "run_or_show", never)
    for dry_run in ([], ["--dry-run"]):  # which names it with everything else
        monkeypatch.setattr("sys.argv", ["reproduce", "--check-arguments", *options, *dry_run])
        if fault is None or dry_run:
            reproduce.main()
            continue
        with pytest.raises(SystemExit) as ended:
            reproduce.main()
        assert ended.value.code == 2
        assert fault in capsys.readouterr().err


def test_disk_space_is_counted_for_what_is_left_to_do(ready, monkeypatch):
    need = 1.54e9 * (2 * 12 + 4)
    arguments = reproduce.parse([*ready, "--model", "1.5b", "--method", "grpo", "--seeds", "1,2"])
    monkeypatch.setattr(common, "free_bytes", lambda folder: 1.5 * need)
    (fault,) = reproduce.check(arguments)
    assert fault.startswith("disk: 86 GB needed")
    assert "--out" in fault
    done = arguments.out / "1.5b_grpo_controlled_seed1"
    done.mkdir(parents=True)
    (done / "merge.done.json").write_text("{}")
    assert reproduce.check(arguments) == []


def test_a_missing_bfcl_environment_is_named_with_its_command(ready, monkeypatch, tmp_path):
    monkeypatch.setenv("SAW_BFCL_VENV", str(tmp_path / "nowhere"))
    assert any("setup.sh --bfcl" in line for line in reproduce.check(reproduce.parse(ready)))
    assert reproduce.check(reproduce.parse([*ready, "--dry-run"])) == []  # the script makes it, unless it is a dry run


@pytest.mark.parametrize("value", ["cpu", "CPU "])
def test_a_platform_that_a_table_would_overrule_is_refused(ready, monkeypatch, value):
    """Kind: the remedy is SAW_PLATFORM=cpu alone, although a table's trainings have SAW_PLATFORM=gpu."""
    monkeypatch.setenv("SAW_PLATFORM", value)
    (fault,) = reproduce.check(reproduce.parse(ready))
    for part in ("SAW_PLATFORM", "--rehearse"):
        assert part in fault
    assert reproduce.check(reproduce.parse(["--rehearse", *ready[2:]])) == []


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--seeds", "1,x"], "'1,x': expected whole numbers"),
        (["--seeds", "-1"], "'-1': expected whole numbers"),
        (["--gpus", "0"], "--gpus is 0; expected at least 1"),
        (["trainer"], "'trainer' is not a Hydra override"),
        (["--rehearse"], "takes neither --source nor --skip-bad"),
        (["--method", "ppo"], "invalid choice: 'ppo'"),
        *(  # kind: an override by which a training would be counted in another row
            ([f"{key}=other"], f"'{key}=other' sets {key}, which this command sets itself; use {instead}")
            for key, instead in {**common.TOLD_APART_BY, **common.SIZES}.items()
        ),
        (["--dry"], "--dry"),  # the script, which has to know a dry run, knows it by its whole name
    ],
)
def test_wrong_options_are_refused(ready, options, fault, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse([*ready, *options])
    assert fault in capsys.readouterr().err


def test_a_rehearsal_may_have_another_size():
    assert reproduce.parse(["--rehearse", "trainer.n_gpus_per_node=2"]).overrides == ["trainer.n_gpus_per_node=2"]


def test_merging_needs_a_complete_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match="no complete checkpoint"):
        merge.last_checkpoint(tmp_path)
    (tmp_path / merge.LATEST).write_text("10")
    with pytest.raises(SystemExit, match="global_step_10"):
        merge.last_checkpoint(tmp_path)
    (tmp_path / "global_step_10" / "actor").mkdir(parents=True)
    assert merge.last_checkpoint(tmp_path) == tmp_path / "global_step_10" / "actor"
