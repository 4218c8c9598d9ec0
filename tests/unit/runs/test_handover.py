"""What a Ray cluster that runs already is given: values and paths in the configuration, variables beside it."""

import json
import logging
import os

import cloudpickle
import pytest
import ray
from omegaconf import OmegaConf

from saw.machine.cluster import UNITS
from saw.runs import handover
from saw.runs.handover import handing_over, settle, variables
from tests.configs import composed_with

QUICKSTART = ("experiment=quickstart",)
TABLE_1 = ("experiment=toolrl", "platform=gpu")
TLDR = ("experiment=tldr", "size=toy")
CLUSTER = "10.0.0.1:6379"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    """A Ray cluster running on this machine must not affect the test."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("SAW_RUNS", raising=False)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------- the environment


def test_the_environment_is_read_here_and_other_interpolations_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("SAW_RUNS", str(tmp_path))
    monkeypatch.setenv("WHERE", "there")
    config = composed_with(
        TLDR,
        {
            "mine.lists": [{"a": "${oc.env:WHERE}"}, "${oc.env:NOT_SET,else}/${trainer.project_name}"],
            "mine.default": "${oc.env:NOT_SET,${oc.env:WHERE}}",
            "mine.nothing": "${oc.env:NOT_SET,null}",
            "mine.later": "${trainer.total_epochs}",
        },
    )
    settle(config)
    monkeypatch.delenv("SAW_RUNS")
    monkeypatch.delenv("WHERE")
    assert "oc.env" not in OmegaConf.to_yaml(config)
    assert config.mine.lists == [{"a": "there"}, f"else/{config.trainer.project_name}"]
    assert config.mine.default == "there"
    assert config.mine.nothing is None
    assert OmegaConf.is_interpolation(config.mine, "later")
    assert config.data.train_files == f"{tmp_path}/tldr/data/train.parquet"
    OmegaConf.to_container(config, resolve=True)


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(ValueError, match="JUDGE_URL"):
        settle(composed_with(QUICKSTART, {"mine.url": "${oc.env:JUDGE_URL}/v1"}))


NAMES = [
    "MY_API_KEY",
    "HF_TOKEN",
    "PASSWORD",
    "aws_secret",
    "OPENAI_API_KEYS",
    "WANDB_APIKEY",
    "DB_PASSWD",
    "CREDENTIALS",
]


@pytest.mark.parametrize("variable", NAMES)
def test_a_key_is_not_read_into_the_configuration(monkeypatch, variable):
    """Kind: a key that is in the configuration, which verl prints and run.json contains."""
    monkeypatch.setenv(variable, "sk-0123456789")
    config = composed_with(QUICKSTART, {"mine.list": [{"header": f"Bearer ${{oc.env:{variable}}}"}]})
    with pytest.raises(ValueError, match=rf"mine\.list\[0\]\.header.*{variable}") as refused:
        settle(config)
    assert "0123456789" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["${oc.env:'MY_TOKEN'}", "${ oc.env : MY_TOKEN }", "${oc.env:${mine.name}}", "${oc.select:no,${oc.env:MY_TOKEN}}"],
)
def test_a_key_is_seen_however_it_is_written(monkeypatch, text):
    """Kind: a variable's name is searched in the text instead of where it is read."""
    monkeypatch.setenv("MY_TOKEN", "sk-0123456789")
    with pytest.raises(ValueError, match=r"mine\.header.*MY_TOKEN") as refused:
        settle(composed_with(QUICKSTART, {"mine.name": "MY_TOKEN", "mine.header": text}))
    assert "0123456789" not in str(refused.value)
    assert OmegaConf.create({"a": "${oc.env:MY_TOKEN}"}).a == "sk-0123456789"


@pytest.mark.parametrize("value", ["${HOME}/x", "a${b", "$x", "${oc.env:MY_TOKEN}", "two\nlines é", "{a: 1}"])
def test_what_a_variable_holds_is_taken_as_it_is(monkeypatch, value):
    """Kind: a value that OmegaConf would read as an interpolation, in another process."""
    monkeypatch.setenv("WHERE", value)
    config = composed_with(QUICKSTART, {"mine.whole": "${oc.env:WHERE}", "mine.part": "x/${oc.env:WHERE}/y"})
    settle(config)
    sent = OmegaConf.to_container(config.mine, resolve=True)
    assert sent == {"whole": value, "part": f"x/{value}/y"}


@pytest.mark.parametrize("variable", ["TOKENIZER", "KEYBOARD", "MAX_TOKENS", "API_KEY_FILE"])
def test_what_only_sounds_like_a_key_is_read(monkeypatch, variable):
    monkeypatch.setenv(variable, "x")
    config = composed_with(QUICKSTART, {"mine": f"${{oc.env:{variable}}}"})
    settle(config)
    assert config.mine == "x"


# ---------------------------------------------------------------- paths


def test_outputs_are_absolute_and_inputs_where_they_are_there(tmp_path):
    for name in ("train.parquet", "rewards.py", "model"):
        (tmp_path / name).touch()
    config = composed_with(
        QUICKSTART,
        {
            "data.train_files": ["train.parquet", "hdfs://a/b.parquet", None],
            "data.val_files": "train.parquet",
            "actor_rollout_ref.model.path": "model",
            "actor_rollout_ref.model.tokenizer_path": "Qwen/Qwen2.5-1.5B-Instruct",
            "reward.custom_reward_function.path": "file://rewards.py",
            "trainer.default_local_dir": "out",
            "trainer.rollout_data_dir": "${trainer.default_local_dir}/rollouts",
            "trainer.validation_data_dir": "/else/where",
        },
    )
    settle(config)
    assert config.data.train_files == [f"{tmp_path}/train.parquet", "hdfs://a/b.parquet", None]
    assert config.data.val_files == f"{tmp_path}/train.parquet"
    assert config.actor_rollout_ref.model.path == f"{tmp_path}/model"
    assert config.actor_rollout_ref.model.tokenizer_path == "Qwen/Qwen2.5-1.5B-Instruct"
    assert config.reward.custom_reward_function.path == f"file://{tmp_path}/rewards.py"
    assert config.trainer.default_local_dir == f"{tmp_path}/out"
    assert config.trainer.rollout_data_dir == f"{tmp_path}/out/rollouts"
    assert OmegaConf.is_interpolation(config.trainer, "rollout_data_dir")
    assert config.trainer.validation_data_dir == "/else/where"


def test_a_module_of_a_package_and_a_home_stay_right(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    config = composed_with(QUICKSTART, {"actor_rollout_ref.model.path": "~/model", "trainer.default_local_dir": "~/o"})
    module = config.reward.custom_reward_function.path
    settle(config)
    assert module.startswith("pkg://")
    assert config.reward.custom_reward_function.path == module
    assert config.actor_rollout_ref.model.path == f"{tmp_path}/model"
    assert config.trainer.default_local_dir == f"{tmp_path}/o"


def test_the_listed_keys_are_keys_of_the_tree(monkeypatch):
    """A key that verl has renamed would be skipped silently."""
    monkeypatch.setenv("GEMINI_API_KEY", "x")
    config = composed_with(TLDR)
    added = {"data.sampler.class_path"}  # by who uses it, with a +
    for key in {*handover.OUTPUTS, *handover.INPUTS} - added:
        section, _, name = key.rpartition(".")
        assert name in OmegaConf.select(config, section), key


# ---------------------------------------------------------------- a cluster's own options


def test_storage_units_are_sized_where_nothing_is_set():
    config = composed_with(TABLE_1, {"trainer.nnodes": 3})
    settle(config)
    assert OmegaConf.select(config, UNITS) == 6
    config = composed_with(TABLE_1, {UNITS: 8})
    settle(config)
    assert OmegaConf.select(config, UNITS) == 8


def test_the_cpu_platform_starts_on_a_cluster_that_runs_already(monkeypatch, caplog):
    """Ray refuses these options on a running cluster; a Ray that the process starts gets them."""
    config = composed_with(QUICKSTART)
    settle(config)
    assert config.ray_kwargs.ray_init.num_cpus == 32
    assert not caplog.records
    monkeypatch.setenv("RAY_ADDRESS", CLUSTER)
    with caplog.at_level(logging.WARNING):
        settle(config)
    assert set(config.ray_kwargs.ray_init) == {"runtime_env"}
    assert "num_gpus=2" in caplog.text
    assert CLUSTER in caplog.text


# ---------------------------------------------------------------- variables


def test_variables_are_passed_on_by_name():
    environment = {
        "VERL_A": "1",
        "SAW_COMMAND": "python '${x}'",
        "NCCL_DEBUG": "INFO",
        "TQ_LOGGING_LEVEL": "DEBUG",
        "VLLM_USE_V1": "1",
        "VLLM_API_KEY": "v",
        "TOKENIZERS_PARALLELISM": "false",  # verl passes on its own value only where this process has none
        "WANDB_API_KEY": "w",
        "WANDB_PROJECT": "p",
        "HF_TOKEN": "h",
        "HTTPS_PROXY": "http://user:pw@host",
        "no_proxy": "localhost",
        "GEMINI_API_KEY": "g",
        "OPENAI_API_KEY": "not this judge's",
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "3",
        "SAW_RUN_ID": "of this process",
        "VLLM_HOST_IP": "of this node",
    }
    plain, private = variables(composed_with(TLDR), environment)
    assert set(plain) == {
        "VERL_A",
        "SAW_COMMAND",
        "NCCL_DEBUG",
        "TQ_LOGGING_LEVEL",
        "VLLM_USE_V1",
        "TOKENIZERS_PARALLELISM",
    }
    assert set(private) == {
        *("VLLM_API_KEY", "WANDB_API_KEY", "WANDB_PROJECT", "HF_TOKEN", "HTTPS_PROXY", "no_proxy", "GEMINI_API_KEY")
    }
    assert all(environment[name] == value for name, value in {**plain, **private}.items())


def test_paths_in_variables_are_absolute(tmp_path):
    given = {"SAW_RUNS": "runs", "HF_HOME": "/cache", "WANDB_DIR": "", "VLLM_DISABLE_COMPILE_CACHE": "1"}
    plain, private = variables(composed_with(QUICKSTART), given)
    assert {**plain, **private} == {**given, "SAW_RUNS": f"{tmp_path}/runs"}


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "VLLM_API_KEY"])
def test_an_empty_key_does_not_replace_that_of_the_nodes(name, value):
    """Kind: a variable that is empty here but set on the nodes. Variables that are not keys may be empty."""
    config = composed_with(TLDR)
    assert variables(config, {name: value}) == ({}, {})
    assert name in variables(config, {name: "k"})[1]
    assert variables(config, {"WANDB_TAGS": "", "NCCL_DEBUG": ""}) == ({"NCCL_DEBUG": ""}, {"WANDB_TAGS": ""})


@pytest.fixture
def started(monkeypatch):
    """What ``ray.init`` was given."""
    calls = []
    monkeypatch.setattr(ray, "init", lambda *args, **options: calls.append(options))
    return calls


def test_a_ray_of_its_own_inherits(started):
    with handing_over(composed_with(QUICKSTART)):
        ray.init(num_cpus=1)
    assert started == [{"num_cpus": 1}]


def test_keys_go_into_a_function_and_settings_into_the_runtime_env(started, monkeypatch):
    for name in [name for name in os.environ if name.startswith((*handover.SETTINGS, *handover.PRIVATE))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", CLUSTER)
    monkeypatch.setenv("WANDB_API_KEY", "w-0123456789")
    monkeypatch.setenv("VERL_A", "here")
    config = composed_with(QUICKSTART)
    stock = ray.init
    with handing_over(config):
        monkeypatch.setenv("VERL_LATE", "set by verl before it starts Ray")
        ray.init(runtime_env={"env_vars": {"VERL_A": "by the user", "OTHER": "1"}, "working_dir": None})
    assert ray.init is stock
    (options,) = started
    hook = options["runtime_env"].pop("worker_process_setup_hook")
    assert options["runtime_env"] == {
        "env_vars": {"VERL_A": "by the user", "OTHER": "1", "VERL_LATE": "set by verl before it starts Ray"},
        "working_dir": None,
    }
    sent = cloudpickle.dumps(hook)  # as Ray does
    monkeypatch.setenv("WANDB_API_KEY", "the node's own")
    cloudpickle.loads(sent)()
    assert os.environ["WANDB_API_KEY"] == "w-0123456789"
    assert "0123456789" not in OmegaConf.to_yaml(config)


def test_what_a_submitted_job_has_is_not_given_twice(started, monkeypatch):
    """Ray refuses a variable that both ``ray job submit`` and ``ray.init`` have."""
    monkeypatch.setenv("RAY_ADDRESS", CLUSTER)
    monkeypatch.setenv("SAW_PLATFORM", "gpu")
    job = {"runtime_env": {"env_vars": {"SAW_PLATFORM": "gpu"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with handing_over(composed_with(QUICKSTART)):
        ray.init()
    assert "SAW_PLATFORM" not in started[0]["runtime_env"]["env_vars"]


def test_a_hook_of_the_users_is_refused_before_earlier_metrics_make_way(monkeypatch):
    config = composed_with(QUICKSTART, {"ray_kwargs.ray_init.runtime_env.worker_process_setup_hook": "a.b"})
    settle(config)
    monkeypatch.setenv("RAY_ADDRESS", CLUSTER)
    with pytest.raises(ValueError, match=r"ray_init\.runtime_env\.worker_process_setup_hook is 'a\.b'"):
        settle(config)


def test_ray_is_given_back_when_the_training_fails(started, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", CLUSTER)
    stock = ray.init
    with pytest.raises(RuntimeError, match="failed"), handing_over(composed_with(QUICKSTART)):
        raise RuntimeError("failed")
    assert ray.init is stock
