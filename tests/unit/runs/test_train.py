"""The start of a training: what is refused before anything of an earlier one is touched, and what verl is given."""

import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.types import RunMode
from ray.exceptions import RayTaskError

import saw.verl  # noqa: F401  it wraps verl's check
from saw.machine import limits
from saw.rewards import JUDGE
from saw.runs import inputs, train
from saw.runs.task_runner import NodeLost
from saw.verl.agent_loops import AgentLoopDied
from saw.verl.config import ConfigError
from saw.verl.trainer import BadReward, TooManyMissing
from tests.configs import EXPERIMENTS, composed_with

QUICKSTART = ("experiment=quickstart",)
MODEL = "actor_rollout_ref.model.path"
CLUSTER = "10.0.0.1:6379"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A folder with what two trainings logged."""
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
    monkeypatch.delenv("SAW_PLATFORM", raising=False)  # the configurations here are a CPU's, also on a GPU node
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for number, name in enumerate(("metrics.1.jsonl", "metrics.jsonl"), start=1):
        (folder / name).write_text(f'{{"step": {number}, "data": {{}}}}\n')
    yield folder
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)


@pytest.fixture
def configured(earlier, toy_model, toy_data):
    """A training of the quickstart that could start, with changes."""

    def make(changes=None):
        own = {
            MODEL: str(toy_model),
            "data.train_files": str(toy_data[0]),
            "data.val_files": str(toy_data[1]),
            "trainer.default_local_dir": str(earlier),
        }
        return composed_with(QUICKSTART, {**own, **(changes or {})})

    return make


@pytest.fixture
def start(configured, monkeypatch):
    """Starts a training that ends where verl would start Ray, and returns what verl got."""
    from verl.trainer import main_ppo

    given = []
    monkeypatch.setattr(main_ppo, "run_ppo", lambda config, task_runner_class: given.append(config))

    def run(changes=None):
        train.main(configured(changes))
        return given[-1]

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ROLLOUT = "actor_rollout_ref.rollout"
WRONG_SETTINGS = {
    "a method": ({"saw.method": "saw_gdop"}, "saw_gdop"),
    "a key": ({"saw.metod": "grpo"}, "metod"),
    "an estimator": ({"algorithm.adv_estimator": "grpo"}, "adv_estimator"),
    "a number": ({"saw.max_missing": 2}, "max_missing"),
    "verl's own check": ({"data.train_batch_size": 3}, "batch"),
    "verl's older trainer": ({"trainer.use_v1": False}, "trainer.use_v1 is False"),
    "too many GPUs": ({"trainer.n_gpus_per_node": 4}, "n_gpus_per_node"),
    "an attention": (
        {"actor_rollout_ref.model.override_config.attn_implementation": "flash_attention_2"},
        "attn_implementation is 'flash_attention_2'",
    ),
    "a null that verl compares": ({f"{ROLLOUT}.temperature": None}, "verl's check.*rollout.temperature.*null"),
    "a null that verl counts": ({"actor_rollout_ref.model.lora_rank": None}, "verl's check.*lora_rank.*null"),
    "a null of a section": ({"actor_rollout_ref.actor.loss_agg_mode": None}, "verl's check.*loss_agg_mode: None"),
    "no number of samples": ({f"{ROLLOUT}.n": None}, f"{ROLLOUT}.n is None; expected the number"),
    "a number of a variable": (
        {"actor_rollout_ref.actor.clip_ratio": "${oc.env:HOME}"},
        "actor.clip_ratio is the text '/.*; expected a number, or .*oc.decode",
    ),
    "a number in quotes": ({"data.max_prompt_length": "40"}, "data.max_prompt_length is the text '40'"),
    "no mode": ({"trainer.v1.trainer_mode": None}, "trainer.v1.trainer_mode is None"),
    "no column": ({"data.prompt_key": None}, "data.prompt_key is None; expected the name of the column"),
    "a reward function without a name": (
        {"reward.custom_reward_function.name": None},
        "custom_reward_function.path is .* and its name is None",
    ),
    "a number as text": ({f"{ROLLOUT}.n": "four"}, f"{ROLLOUT}.n is the text 'four'; expected a number"),
    "a mode of resuming": ({"trainer.resume_mode": "never"}, "trainer.resume_mode is 'never'; expected auto"),
}
WRONG_BATCHES = {
    "one of two": ({f"{ROLLOUT}.log_prob_use_dynamic_bsz": True}, "log_prob_use_dynamic_bsz is True and"),
    "the other": (
        {"actor_rollout_ref.actor.use_dynamic_bsz": True, f"{ROLLOUT}.log_prob_use_dynamic_bsz": False},
        "use_dynamic_bsz True, but one worker",
    ),
    "no rows": (
        {f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": None, f"{ROLLOUT}.log_prob_micro_batch_size": 8},
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu is null",
    ),
    "no tokens": (
        {
            "actor_rollout_ref.actor.use_dynamic_bsz": True,
            f"{ROLLOUT}.log_prob_use_dynamic_bsz": True,
            f"{ROLLOUT}.log_prob_max_token_len_per_gpu": None,
        },
        f"{ROLLOUT}.log_prob_max_token_len_per_gpu is null",
    ),
    "the reference's tokens": (
        {
            "actor_rollout_ref.actor.use_kl_loss": True,
            "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": True,
            "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": None,
        },
        r"ref.log_prob_max_token_len_per_gpu is null, and .*ref.log_prob_use_dynamic_bsz True",
    ),
}
NOWHERE = "/nowhere/at/all"
WRONG_INPUTS = {
    "training data": ({"data.train_files": NOWHERE}, "data.train_files has '/nowhere/at/all'"),
    "validation data": ({"data.val_files": [NOWHERE]}, "data.val_files has '/nowhere/at/all'"),
    "no data": ({"data.val_files": None}, "data.val_files is None"),
    "a class of data": ({"data.custom_cls.path": f"{NOWHERE}.py"}, "data.custom_cls.path is '/nowhere"),
    "a model's folder": ({MODEL: NOWHERE}, f"{MODEL} is '/nowhere/at/all', which does not exist.*folder"),
    "a tokenizer": (
        {"actor_rollout_ref.model.tokenizer_path": NOWHERE},
        "model.tokenizer_path is '/nowhere/at/all'.*tokenizer",
    ),
    "a configuration": ({"actor_rollout_ref.model.hf_config_path": NOWHERE}, "hf_config_path is '/nowhere/at/all'"),
    "a reward function's file": (
        {"reward.custom_reward_function.path": f"{NOWHERE}.py"},
        "custom_reward_function.path is '/nowhere/at/all.py'.*expected",
    ),
    "a reward function's module": (
        {"reward.custom_reward_function.path": "pkg://saw.nope"},
        "custom_reward_function.path is 'pkg://saw.nope'",
    ),
    "a reward function": ({"reward.custom_reward_function.name": "nope"}, "its name is 'nope'"),
    "tools": ({f"{ROLLOUT}.multi_turn.tool_config_path": NOWHERE}, "tool_config_path is '/nowhere/at/all'"),
    "a checkpoint": (
        {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": f"{NOWHERE}/global_step_3"},
        "resume_from_path is '/nowhere/at/all/global_step_3', which does not exist",
    ),
    "a checkpoint's name": (
        {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": "/tmp"},
        "resume_from_path is '/tmp'; expected a folder whose name is global_step_N",
    ),
    "no checkpoint": (
        {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": None},
        "resume_from_path is None; expected",
    ),
    "rows for a step": ({"data.train_batch_size": 64}, "data.train_batch_size is 64, and data.train_files has 32 rows"),
    "no number of rows": ({"data.train_max_samples": None}, "data.train_max_samples is None; expected a number"),
    "no batch": ({"data.train_batch_size": None}, "data.train_batch_size is None; set it"),
    "data of another kind": ({"data.train_files": 5}, "data.train_files is 5; expected a file"),
    "data without a name": ({"data.val_files": [None]}, r"data.val_files is \[None\]; expected a file"),
    "data in a list too many": (
        {"data.train_files": [["a.parquet"]]},
        r"data.train_files is \[\['a.parquet'\]\]; expected",
    ),
    "a pattern": (
        {"data.train_files": f"{NOWHERE}/*.parquet"},
        r"data.train_files has '/nowhere.*\*.parquet', a pattern",
    ),
    "a folder of data": ({"data.train_files": "/"}, "data.train_files has '/', which is a folder"),
    "no model": ({MODEL: None}, f"{MODEL} is None; expected a model's folder"),
    "a model without a name": ({MODEL: ""}, f"{MODEL} is ''; expected a model's folder"),
    "a model's file": ({MODEL: __file__}, f"{MODEL} is '.*py', which is a file; expected a model's folder"),
    "no folder": ({"trainer.default_local_dir": None}, "trainer.default_local_dir is None; expected a folder"),
    "a folder without a name": (
        {"trainer.default_local_dir": ""},
        "trainer.default_local_dir is ''; expected a folder",
    ),
    "a folder elsewhere": (
        {"trainer.default_local_dir": "hdfs://a"},
        "trainer.default_local_dir is 'hdfs://a'; expected",
    ),
    "a folder's name": (
        {"trainer.default_local_dir": f"/tmp/{'x' * 300}"},
        "trainer.default_local_dir needs .*can't be looked up",
    ),
    "a logger": ({"trainer.logger": ["file", "wandbb"]}, r"trainer.logger is \['file', 'wandbb'\]; expected .* wandb,"),
    "no logger": ({"trainer.logger": None}, "trainer.logger is None; expected"),
    "a reward function's arguments": (
        {"reward.custom_reward_function.reward_kwargs": None},
        "reward_kwargs is None; expected a mapping",
    ),
    "fewer rows": ({"data.train_max_samples": 8}, "data.train_batch_size is 32, and data.train_files has 8 rows"),
}
WRONG = {**WRONG_SETTINGS, **WRONG_BATCHES, **WRONG_INPUTS}


@pytest.mark.parametrize("what", WRONG)
def test_a_refused_start_touches_nothing_of_an_earlier_training(start, earlier, what):
    """Kind: a check that runs after the metrics were put aside; without resuming, they would be deleted."""
    changes, says = WRONG[what]
    before = contents(earlier)
    with pytest.raises(ValueError if what != "verl's own check" else Exception, match=says):
        start({"trainer.resume_mode": "disable", **changes})
    assert contents(earlier) == before


@pytest.mark.parametrize("mode", ["disable", "auto"])
@pytest.mark.parametrize("which", ["default", "variable"])
def test_nor_does_one_whose_metrics_have_no_place(start, earlier, tmp_path, monkeypatch, mode, which):
    """Kind: verl fails to open its log after the older parts have been deleted."""
    place = earlier if which == "default" else tmp_path / "elsewhere"
    (place / "metrics.jsonl").unlink(missing_ok=True)
    (place / "metrics.jsonl").mkdir(parents=True)
    if which == "variable":
        monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(place / "metrics.jsonl"))
    before = contents(earlier)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl', which is not a file that can be written"):
        start({"trainer.resume_mode": mode})
    assert contents(earlier) == before


def test_metrics_whose_variable_is_empty_go_beside_the_checkpoints(start, earlier, monkeypatch):
    """Kind: a variable that is set but empty; verl would open a file without a name."""
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", "")
    start()
    assert os.environ["VERL_FILE_LOGGER_PATH"] == str(earlier / "metrics.jsonl")


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
@pytest.mark.parametrize("what", ["a method", "verl's own check", "training data"])
def test_nor_does_one_that_would_resume(start, earlier, mode, what):
    before = contents(earlier)
    with pytest.raises(Exception, match=WRONG[what][1]):
        start({"trainer.resume_mode": mode, **WRONG[what][0]})
    assert contents(earlier) == before


ROW = {
    "prompt": [{"role": "user", "content": "a"}],
    "data_source": "b",
    "reward_model": {"ground_truth": "c"},
    "extra_info": {"index": 0},
}
LINES = {
    "a broken line": json.dumps(ROW).encode() + b"\n{\n",
    "lines of another kind": b"[1]\n",
    "bytes": b"\xff\xfe\x00\n",
    "other keys": b'{"question": 1}\n',
    "a prompt as text": json.dumps({**ROW, "prompt": "a"}).encode(),
}


def _shards(file: Path) -> None:
    (file.parent / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-2.safetensors"}}')


def _without_index(file: Path) -> None:
    file.with_suffix(".whole").rename(file.parent / "model-1-of-2.safetensors")


WEIGHTS = {
    "no index": _without_index,
    "weights that are links": lambda file: file.symlink_to("gone"),
    "weights that are pointers": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
    "empty weights": lambda file: file.touch(),
    "half of the weights": lambda file: file.write_bytes(file.with_suffix(".whole").read_bytes()[:-100]),
    "an error page": lambda file: file.write_text("<html>404</html>"),
    "shards": _shards,
}


MESSAGES = {"prompts as texts": ["text"], "messages of another form": [{"from": "human", "value": "text"}]}


def broken(path: Path, name: str) -> dict:
    """A folder of the toy model with a fault in it, or a data file."""
    rows = pq.read_table(path / "rows.parquet")
    if name == "garbage":
        (path / "rows.parquet").write_bytes(b"PAR1 no rows")
    elif name == "no rows":
        pq.write_table(rows.slice(0, 0), path / "rows.parquet")
    elif name == "no prompts":
        pq.write_table(rows.drop_columns(["prompt"]), path / "rows.parquet")
    elif name == "no references":
        pq.write_table(rows.drop_columns(["reward_model"]), path / "rows.parquet")
    elif name == "no number for each row":
        nameless = pa.array([{"split": "train"}] * len(rows))
        pq.write_table(rows.drop_columns(["extra_info"]).append_column("extra_info", nameless), path / "rows.parquet")
    elif name == "an ending":
        (path / "rows.parquet").rename(path / "rows.csv")
        return {"data.train_files": str(path / "rows.csv")}
    elif name == "an empty file":
        (path / "rows.jsonl").write_text("\n")
        return {"data.train_files": str(path / "rows.jsonl")}
    elif name in ("prompts as text", "references as text"):
        column = {"prompts as text": "prompt", "references as text": "reward_model"}[name]
        text = pa.array(["text"] * len(rows))
        pq.write_table(rows.drop_columns([column]).append_column(column, text), path / "rows.parquet")
    elif name in MESSAGES:
        messages = pa.array([MESSAGES[name]] * len(rows))
        pq.write_table(rows.drop_columns(["prompt"]).append_column("prompt", messages), path / "rows.parquet")
    elif name == "no truth":
        truth = pa.array([{"style": "rule"}] * len(rows))
        pq.write_table(rows.drop_columns(["reward_model"]).append_column("reward_model", truth), path / "rows.parquet")
    elif name in LINES:
        (path / "rows.jsonl").write_bytes(LINES[name])
        return {"data.train_files": [str(path / "rows.parquet"), str(path / "rows.jsonl")]}
    elif name == "an array":
        (path / "rows.json").write_text("[]")
        return {"data.val_files": str(path / "rows.json")}
    elif name == "a link":
        (path / "rows.parquet").unlink()
        (path / "rows.parquet").symlink_to(path / "gone")
    elif name in WEIGHTS:
        for file in path.glob("model/*.safetensors"):
            file.rename(file.with_suffix(".whole"))
            WEIGHTS[name](file)
        return {MODEL: str(path / "model")}
    elif name == "a list in config.json":
        (path / "model" / "config.json").write_text("[]")
        return {MODEL: str(path / "model")}
    elif name == "weights":
        for file in path.glob("model/*.safetensors"):
            file.unlink()
        return {MODEL: str(path / "model")}
    elif name == "a tokenizer's file":
        for file in path.glob("model/tok*"):
            file.unlink()
        return {MODEL: str(path / "model")}
    elif name == "a template":
        for file in path.glob("model/chat_template*"):
            file.unlink()
        config = path / "model" / "tokenizer_config.json"
        config.write_text(config.read_text().replace("chat_template", "no_template"))
        return {MODEL: str(path / "model")}
    elif name == "config.json":
        (path / "model" / "config.json").write_text("{")
        return {MODEL: str(path / "model")}
    return {"data.train_files": [str(path / "rows.parquet")]}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("garbage", "train_files has .*can't be read"),
        ("no rows", "train_files has .*no rows"),
        ("no prompts", "without prompt; its columns are"),
        ("no references", "without reward_model; its columns are"),
        ("an ending", r"train_files has .*csv.*expected \.parquet, \.json or \.jsonl"),
        ("an empty file", "train_files has .*jsonl.*no rows"),
        ("prompts as text", "column prompt is of type string; expected a list of messages"),
        ("prompts as texts", "column prompt is of type list<.*string>; expected a list of messages with role"),
        ("messages of another form", "column prompt is of type list<.*from.*; expected a list of messages with role"),
        ("references as text", "column reward_model is of type string; expected a mapping with ground_truth"),
        ("no truth", "column reward_model is of type struct<style: string>; expected .* ground_truth"),
        (
            "no number for each row",
            "column extra_info is of type struct<split: string>; expected .* index, .*single_turn",
        ),
        ("a broken line", "train_files has .*jsonl.*can't be read.*line 2"),
        ("lines of another kind", "train_files has .*jsonl.*can't be read"),
        ("bytes", "train_files has .*jsonl.*can't be read.*line 1"),
        (
            "other keys",
            "train_files has .*jsonl.*without prompt, data_source, reward_model, extra_info; its columns are question",
        ),
        ("a prompt as text", "train_files has .*jsonl.*column prompt is of type string"),
        ("an array", "val_files has .*json.*no rows"),
        ("a link", "train_files has .*parquet', a link to something that does not exist"),
        ("weights that are links", "folder whose model.safetensors is missing"),
        ("weights that are pointers", "folder whose model.safetensors is a pointer of Git LFS"),
        ("empty weights", "folder whose model.safetensors is empty"),
        ("half of the weights", "folder whose model.safetensors is broken or cut off .*again"),
        ("an error page", "folder whose model.safetensors is broken or cut off .*again"),
        ("shards", "folder whose model-1-of-2.safetensors is missing"),
        ("no index", "folder with model-1-of-2.safetensors, and without the index"),
        ("a list in config.json", "model.path is .*config.json"),
        ("weights", "folder without weights"),
        ("a tokenizer's file", "model.path is .*vocabulary.*tokenizer.json"),
        ("a template", "no chat template; set .*custom_chat_template"),
        ("config.json", "model.path is .*config.json"),
    ],
)
def test_what_is_there_and_broken_is_refused_too(configured, tmp_path, toy_model, toy_data, name, says):
    """Kind: a check that something exists, but not what it is."""
    shutil.copytree(toy_model, tmp_path / "model")
    shutil.copy(toy_data[0], tmp_path / "rows.parquet")
    inputs.check(configured({MODEL: str(tmp_path / "model"), "data.train_files": str(tmp_path / "rows.parquet")}))
    with pytest.raises(ConfigError, match=says):
        inputs.check(configured(broken(tmp_path, name)))


@pytest.mark.parametrize(
    "changes",
    [
        {"data.train_files": "hdfs://a/b.parquet"},
        {"data.train_files": ["hdfs://a/b.parquet", "s3://c/d.jsonl"]},
        {MODEL: "hdfs://a/model"},
        {"data.custom_cls.path": __file__, "data.train_files": NOWHERE, "data.val_files": None},
        {"data.custom_cls.path": "pkg://tests.unit", "data.train_files": None},
        {"reward.reward_manager.source": "importlib"},  # it may read other columns
    ],
)
def test_what_only_verl_or_the_user_s_own_code_can_know_is_left_to_them(configured, changes):
    inputs.check(configured(changes))


def test_all_that_is_missing_is_said_at_once(configured):
    with pytest.raises(ConfigError) as refused:
        inputs.check(configured({"data.train_files": NOWHERE, "data.val_files": NOWHERE, MODEL: NOWHERE}))
    for key in ("data.train_files", "data.val_files", MODEL):
        assert key in str(refused.value)


def test_on_a_running_cluster_what_the_nodes_may_have_is_a_warning(configured, monkeypatch, caplog, tmp_path):
    """Kind: this machine is checked instead of the cluster's nodes. What is written is checked nevertheless."""
    monkeypatch.setenv("RAY_ADDRESS", CLUSTER)
    checkpoint = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": f"{NOWHERE}/global_step_3"}
    with caplog.at_level(logging.WARNING):
        inputs.check(configured({"data.train_files": NOWHERE, MODEL: NOWHERE, **checkpoint}))
    for part in ("data.train_files has '/nowhere", f"{MODEL} is '/nowhere", CLUSTER):
        assert part in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"trainer\.default_local_dir needs"):
        inputs.check(configured({"trainer.default_local_dir": str(tmp_path / "file" / "run")}))


@pytest.mark.parametrize(
    "key",
    ["trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir", "VERL_FILE_LOGGER_PATH"],
)
@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_folder_that_cannot_be_written_to_is_refused(configured, monkeypatch, tmp_path, key, below):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path) and access(path, mode))
    for name, says in (("file", "file is not a folder"), ("closed", "closed is not writable")):
        folder = str(tmp_path / name / below)
        if key.startswith("VERL"):
            monkeypatch.setenv(key, f"{folder}/metrics.jsonl")
        with pytest.raises(ConfigError, match=f"{key} needs .*{says}"):
            inputs.check(configured({} if key.startswith("VERL") else {key: folder}))
    assert not (tmp_path / "closed" / "a").exists()


LIMITS = {
    "open files": ("open_files", lambda line: line(200), ["open files: 200 per process", "ulimit -n"]),
    "processes": ("processes", lambda line: line({"pids.max, 9": 4}), ["processes: 4 more allowed by pids.max, 9"]),
    "disk": ("disk", lambda line: line(None, free=10), ["disk: 0 MB free", "trainer.default_local_dir"]),
    "Ray's disk": ("ray_disk", lambda line: line(None, space=(10, 100)), ["Ray's disk: 0 MB free", "RAY_TMPDIR"]),
}


@pytest.mark.parametrize("what", LIMITS)
def test_what_the_machine_lacks_is_refused_before_ray_starts(start, earlier, monkeypatch, what):
    """Kind: Ray or a worker fails minutes later, without the cause; the doctor shows the same line."""
    name, measured, words = LIMITS[what]
    check = getattr(limits, name)
    monkeypatch.setattr(limits, name, lambda *_: measured(check))
    before = contents(earlier)
    with pytest.raises(ConfigError) as refused:
        start({"trainer.resume_mode": "disable"})
    for word in words:
        assert word in str(refused.value)
    assert contents(earlier) == before


def test_shared_memory_that_ray_refuses_is_refused(start, monkeypatch):
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9, total=10**10))
    with pytest.raises(ConfigError, match=r"shared memory: 1\.0 GB free .* 40 GB .*object_store_memory"):
        start({"ray_kwargs.ray_init.object_store_memory": 40 * 10**9})


def test_the_nodes_of_a_running_cluster_have_limits_of_their_own(configured, monkeypatch):
    monkeypatch.setattr(limits, "check", lambda config: pytest.fail("this machine's limits do not count"))
    for module in (train.cluster, inputs):
        monkeypatch.setattr(module, "running", lambda config: CLUSTER)
    monkeypatch.setattr(train.cluster, "check", lambda config, there: None)
    monkeypatch.setattr(train.cluster, "available", lambda config: None)
    monkeypatch.setattr("saw.runs.cluster_checks.check", lambda config: None)
    train.check(configured(), "cpu")


@pytest.mark.parametrize("key", ["cache", "faults"])
def test_so_is_the_judge_s(configured, tmp_path, key):
    (tmp_path / "file").touch()
    section = f"{JUDGE}.{key}"
    with pytest.raises(ConfigError, match=f"{section} needs"):
        inputs.check(configured({section: str(tmp_path / "file" / "x")}))
    inputs.check(configured({section: str(tmp_path / "new" / "x")}))
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- a start that passes


@pytest.mark.parametrize("mode", ["disable", "auto"])
def test_a_start_that_passes_makes_way(start, earlier, mode):
    """Without resuming they are deleted as well, but by the trainer, when the models are loaded."""
    start({"trainer.resume_mode": mode})
    assert sorted(path.name for path in earlier.iterdir()) == ["metrics.1.jsonl", "metrics.2.jsonl"]


@pytest.mark.parametrize(("mode", "left"), [("disable", []), ("auto", ["metrics.1.jsonl", "metrics.2.jsonl"])])
def test_metrics_of_a_trainer_that_is_not_saw_s_make_way_before_it(configured, earlier, mode, left):
    train._keep_earlier_metrics(configured({"trainer.v1.trainer_mode": "sync", "trainer.resume_mode": mode}))
    assert sorted(path.name for path in earlier.iterdir()) == left


# ---------------------------------------------------------------- a CPU that nobody chose


def large(toy_model: Path, folder: Path) -> Path:
    """The toy model's folder with the sizes of Qwen2.5-1.5B."""
    shutil.copytree(toy_model, folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": 1536, "num_hidden_layers": 28, "vocab_size": 151_936, "layer_types": None}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    return folder


@pytest.mark.parametrize(
    ("reason", "refused"),
    [
        ("this machine has no accelerator", True),
        ("this machine has no accelerator (the driver is gone)", True),
        ("SAW_PLATFORM is cpu", False),
        ("CUDA_VISIBLE_DEVICES is '', which hides the GPUs", False),
        (None, False),
    ],
)
def test_a_large_model_is_not_trained_on_a_cpu_that_nobody_chose(
    start, monkeypatch, toy_model, tmp_path, reason, refused
):
    """Kind: a full-size training on the CPU, for lack of a GPU, that takes months."""
    if reason is not None:
        monkeypatch.setenv(train.REASON, reason)
    path = str(large(toy_model, tmp_path / "large"))
    if refused:
        with pytest.raises(ConfigError, match=rf"{MODEL} is '{path}'.*no accelerator.*size=toy; SAW_PLATFORM=cpu"):
            start({MODEL: path})
    else:
        start({MODEL: path})
    start()  # a toy model is what a CPU is for


@pytest.mark.parametrize(
    ("path", "expected"),
    [("Qwen/Qwen2.5-1.5B-Instruct", True), ("runs/quickstart/model", False), (NOWHERE, False), (None, False)],
)
def test_a_model_that_cannot_be_read_is_large_only_if_it_is_one_of_the_hub(configured, monkeypatch, path, expected):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(inputs.AutoConfig, "from_pretrained", unreachable)
    assert inputs.is_large_for_a_cpu(configured({MODEL: path})) == expected


# ---------------------------------------------------------------- the last checkpoint


@pytest.mark.parametrize(("step", "says"), [("", "has ''"), ("abc", "has 'abc'"), ("7", "names step 7.*global_step_7")])
def test_a_record_of_a_checkpoint_that_is_not_there_does_not_start_over(start, earlier, step, says):
    """Kind: a full disk, or a checkpoint removed by hand; verl would fail later, or silently train from the start."""
    (earlier / "latest_checkpointed_iteration.txt").write_text(step)
    before = contents(earlier)
    with pytest.raises(ConfigError, match=f"latest_checkpointed_iteration.txt {says}.*resume_mode=disable"):
        start({"trainer.resume_mode": "auto"})
    assert contents(earlier) == before
    start({"trainer.resume_mode": "disable"})


def test_a_record_of_a_checkpoint_that_is_there_is_followed(start, earlier):
    (earlier / "latest_checkpointed_iteration.txt").write_text("7\n")
    (earlier / "global_step_7").mkdir()
    start({"trainer.resume_mode": "auto"})


def test_a_folder_that_is_a_link_to_nothing_is_refused(start, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"trainer\.default_local_dir needs .*link is not a folder"):
        start({"trainer.default_local_dir": str(tmp_path / "link" / "run")})


# ---------------------------------------------------------------- a Hub that does not answer

ON_HUB = "Somebody/toy"


def test_a_model_that_is_nowhere_is_refused_without_waiting(start, earlier, hub, capsys):
    """Kind: five more tries of half a minute for each file that a library looks for."""
    hub.answers(ConnectionError("no route to host"))
    before = contents(earlier)
    with pytest.raises(ConfigError, match=rf"{MODEL} is '{ON_HUB}'.*lacks config.json.*no route.*hf download {ON_HUB}"):
        start({MODEL: ON_HUB})
    assert "saw: the Hub does not answer" in capsys.readouterr().err
    assert len(hub.asked) == 1
    assert contents(earlier) == before


def test_a_model_in_the_cache_is_trained_from_there(start, hub, toy_model, capsys):
    hub.answers(ConnectionError("no route to host"))
    hub.has_cached(ON_HUB, toy_model)
    start({MODEL: ON_HUB})
    assert hub.is_offline() == (True, True)
    assert "only what is in its cache is used" in capsys.readouterr().err


def test_a_model_whose_download_was_cut_short_is_refused_while_it_cannot_go_on(start, hub, toy_model):
    hub.answers(ConnectionError("no route to host"))
    (hub.has_cached(ON_HUB, toy_model) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=rf"{MODEL} is '{ON_HUB}'.*lacks model.safetensors"):
        start({MODEL: ON_HUB})


@pytest.mark.parametrize("key", ["tokenizer_path", "hf_config_path"])
def test_a_part_of_the_model_that_is_nowhere_is_refused_too(start, hub, key):
    hub.answers(ConnectionError("no route to host"))
    with pytest.raises(ConfigError, match=rf"{key} is '{ON_HUB}'"):
        start({f"actor_rollout_ref.model.{key}": ON_HUB})


def test_the_judge_s_model_is_looked_for_too(configured, hub):
    hub.answers(ConnectionError("no route to host"))
    config = configured({"reward.reward_model.enable": True, "reward.reward_model.model_path": ON_HUB})
    assert ON_HUB in inputs.models(config)
    (fault,) = inputs.judge_model_faults(config)
    assert f"reward.reward_model.model_path is '{ON_HUB}'" in fault


def test_the_nodes_of_a_running_cluster_may_reach_the_hub(configured, hub, monkeypatch, caplog):
    hub.answers(ConnectionError("no route to host"))
    for module in (train.cluster, inputs):
        monkeypatch.setattr(module, "running", lambda config: CLUSTER)
    train._look_for_the_hub(configured({MODEL: ON_HUB}))
    inputs.check(configured({MODEL: ON_HUB}))
    assert hub.is_offline() == (False, True)
    assert ON_HUB in caplog.text


# ---------------------------------------------------------------- the message of a refusal


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"saw.method": "saw_gdop"}, ["saw.method", "'saw_gdop'", "saw_gdpo", "VERL_USE_EXTERNAL_MODULES"]),
        ({"data.train_files": NOWHERE}, ["data.train_files", NOWHERE]),
        ({"trainer.nnodes": 0}, ["trainer.nnodes is 0"]),  # a ValueError of saw.machine
        ({"trainer.project_name": "${oc.env:SAW_SOME_TOKEN,none}"}, ["trainer.project_name", "SAW_SOME_TOKEN"]),
        ({"trainer.n_gpus_per_node": 4}, ["n_gpus_per_node"]),
    ],
)
def test_the_command_shows_a_refusal_without_a_traceback(configured, changes, words):
    with pytest.raises(SystemExit) as ended:
        train.command(configured(changes))
    assert str(ended.value).startswith("saw: ")
    for word in words:
        assert word in str(ended.value)


@pytest.mark.parametrize("given", [None, "127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_message(configured, monkeypatch, given):
    """Kind: lines of verl before the message; its checks must not run."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1" if given is None else "127.0.0.1:2")
    monkeypatch.setattr(train, "check", lambda config, platform: pytest.fail("verl's checks print lines"))
    key = "RAY_ADDRESS" if given is None else "ray_kwargs.ray_init.address"
    with pytest.raises(SystemExit, match=rf"^saw: {key} is '127\.0\.0\.1:1', and no Ray cluster can be reached"):
        train.command(configured({"ray_kwargs.ray_init.address": given}))


def of_another_process(error: Exception) -> Exception:
    """An error as Ray raises it here; its text is the traceback."""
    return RayTaskError("run", "Traceback (most recent call last):\n  ...", error).as_instanceof_cause()


@pytest.mark.parametrize("error", [ConfigError, NodeLost, TooManyMissing, BadReward, AgentLoopDied])
@pytest.mark.parametrize("raised", [lambda error: error, of_another_process], ids=["here", "in another process"])
def test_the_command_shows_why_a_training_ended_without_a_traceback(configured, monkeypatch, error, raised):
    def run_ppo(config, task_runner_class):
        raise raised(error("step 3: why. The same command resumes."))

    monkeypatch.setattr("verl.trainer.main_ppo.run_ppo", run_ppo)
    with pytest.raises(SystemExit, match=r"^saw: step 3: why\. The same command resumes\.$"):
        train.command(configured())


def test_an_error_of_another_process_that_is_not_ours_keeps_its_traceback(configured, monkeypatch):
    def run_ppo(config, task_runner_class):
        raise of_another_process(RuntimeError("a bug"))

    monkeypatch.setattr("verl.trainer.main_ppo.run_ppo", run_ppo)
    with pytest.raises(RayTaskError):
        train.command(configured())


def test_an_error_of_the_user_s_own_code_keeps_its_traceback(configured, tmp_path):
    (tmp_path / "mine.py").write_text("def compute_score(**_):\n    raise ValueError('a bug of mine')\n")
    own = {"reward.custom_reward_function.path": str(tmp_path / "mine.py")}
    with pytest.raises(ValueError, match="a bug of mine"):
        train.command(configured({**own, "reward.custom_reward_function.name": "compute_score"}))


def test_a_name_may_look_like_a_number(start):
    start({"trainer.experiment_name": "12345"})  # of a job, say


def test_a_refused_start_makes_no_folder(start, tmp_path):
    new = {"trainer.default_local_dir": str(tmp_path / "new")}
    with pytest.raises(ConfigError, match="saw_gdop"):
        start({**new, "saw.method": "saw_gdop"})
    assert not (tmp_path / "new").exists()
    start(new)
    assert (tmp_path / "new").is_dir()


def test_a_multirun_is_refused(start, earlier, monkeypatch):
    """Kind: a process's second training inherits the first one's variables and deletes its metrics."""
    before = contents(earlier)
    monkeypatch.setattr(train.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(train.HydraConfig, "get", lambda: SimpleNamespace(mode=RunMode.MULTIRUN))
    with pytest.raises(ValueError, match=r"hydra\.mode is MULTIRUN .* saw sweep"):
        start()
    assert contents(earlier) == before
    monkeypatch.setattr(train.HydraConfig, "get", lambda: SimpleNamespace(mode=RunMode.RUN))
    start()


def test_verl_s_check_runs_once_and_what_is_open_is_settled_before_it_starts(start, monkeypatch):
    from verl.trainer import main_ppo

    calls = []
    stock = main_ppo.validate_config
    monkeypatch.setattr(main_ppo, "validate_config", lambda **given: (calls.append(given), stock(**given)))
    config = start()
    assert len(calls) == 1
    assert config.actor_rollout_ref.model.use_fused_kernels is False
    assert os.environ["SAW_ACTIVE"] == "1"


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["reading=controlled"], ["+reading=controlled", "saw.method=grpo"], ["experiment="], ["experiment=null"]),
        *(["experiment=quickstart", "experiment=null"], ["--config-dir", "examples"], ["myexperiment=x"]),
    ],
)
def test_a_command_without_an_experiment_says_that_and_which_there_are(arguments):
    """Kind: an error reports a consequence of the missing part instead of the part."""
    said = train.missing_experiment(arguments)
    assert said is not None
    assert "experiment=NAME" in said
    for name in EXPERIMENTS:
        assert name in said
    assert "base" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        *(["experiment=quickstart"], ["+experiment=own"], ["reading=controlled", "experiment=toolrl"]),
        *(["--config-dir", "examples", "experiment=own"], ["--cfg", "job"], ["--help"], ["--cfg=job"]),
    ],
)
def test_one_with_an_experiment_or_a_question_for_hydra_passes(arguments):
    assert train.missing_experiment(arguments) is None
