"""The merge of a checkpoint: a folder that can't be merged is one message, and no other folder is deleted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.common import merge


@pytest.fixture
def training(tmp_path) -> Path:
    """A folder with a checkpoint of two ranks, as verl names its files."""
    actor = tmp_path / "training" / "global_step_2" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    for rank in (0, 1):
        (actor / f"model_world_size_2_rank_{rank}.pt").write_bytes(b"x")
    (tmp_path / "training" / merge.LATEST).write_text("2")
    return tmp_path / "training"


@pytest.fixture
def merger(monkeypatch):
    """verl's merger, which makes a folder or fails."""
    ends_with = []

    def run(command, check):
        assert not check
        folder = Path(command[command.index("--target_dir") + 1])
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        return subprocess.CompletedProcess(command, ends_with.pop() if ends_with else 0)

    monkeypatch.setattr(subprocess, "run", run)
    return ends_with


ACTOR = "global_step_2/actor"


def _folder_as_record(folder):
    (folder / merge.LATEST).unlink()
    (folder / merge.LATEST).mkdir()


WRONG = {
    "no checkpoint": (lambda folder: (folder / merge.LATEST).unlink(), merge.LATEST),
    "another step": (lambda folder: (folder / merge.LATEST).write_text("7"), "global_step_7"),
    "an empty record": (lambda folder: (folder / merge.LATEST).write_text(" "), f"{merge.LATEST} holds b''"),
    "a binary record": (lambda folder: (folder / merge.LATEST).write_bytes(b"\xff\x00"), f"{merge.LATEST} holds b'"),
    "a folder for a record": (_folder_as_record, f"{merge.LATEST} can't be read"),
    **{
        f"world_size {size}": (
            lambda folder, size=size: (folder / ACTOR / "fsdp_config.json").write_text(f'{{"world_size": {size}}}'),
            "world_size in its fsdp_config.json is",
        )
        for size in ("0", "-1", "Infinity", "NaN", '"two"', '"2"', "null", "true", "2.0")
    },
    "too many ranks": (
        lambda folder: (folder / ACTOR / "fsdp_config.json").write_text('{"world_size": 100000}'),
        "size_100000_rank_0.pt.* absent",
    ),
    "no sizes": (lambda folder: (folder / ACTOR / "fsdp_config.json").unlink(), "fsdp_config.json"),
    "half a file": (lambda folder: (folder / ACTOR / "fsdp_config.json").write_text('{"wor'), "fsdp_config.json"),
    "other sizes": (lambda folder: (folder / ACTOR / "fsdp_config.json").write_text("[]"), "fsdp_config.json"),
    "one rank": (lambda folder: (folder / ACTOR / "model_world_size_2_rank_1.pt").unlink(), "size_2_rank_1.pt absent"),
    "no model": (lambda folder: (folder / ACTOR / "huggingface" / "config.json").unlink(), "huggingface/config.json"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_cannot_be_merged_is_one_message(training, merger, what):
    """Kind: the traceback of a program that another one runs."""
    spoil, says = WRONG[what]
    spoil(training)
    with pytest.raises(SystemExit, match=says) as ended:
        merge.merge(training, training / "hf")
    assert len(str(ended.value)) < 2000
    assert not (training / "hf").exists()


def test_a_merger_that_fails_is_named_and_can_be_repeated(training, merger):
    merger.append(1)
    with pytest.raises(SystemExit, match=rf"{ACTOR} can't be merged: .* exit code 1"):
        merge.merge(training, training / "hf")
    assert not (training / "hf").exists()
    merge.merge(training, training / "hf")
    assert json.loads((training / "hf" / "config.json").read_text()) == {}


@pytest.mark.parametrize("file", ["notes", "config.json"])
@pytest.mark.parametrize("out", ["training", ".", "training/notes", "training/global_step_2", "elsewhere", "link", ""])
def test_nothing_is_replaced(training, merger, monkeypatch, out, file):
    """Kind: a wrong --out, such as the folder of the checkpoints, is deleted, even if it holds a model."""
    elsewhere = training.parent / "elsewhere"
    elsewhere.mkdir()
    (training.parent / "link").symlink_to(elsewhere)
    for folder in (training, training.parent, elsewhere):
        (folder / file).write_text("mine")
    (training / "notes").write_text("mine")
    before = sorted(training.parent.rglob("*"))
    monkeypatch.chdir(elsewhere)
    with pytest.raises(SystemExit, match="is not an empty folder"):
        merge.merge(training, training.parent / out if out else Path(out))
    assert sorted(training.parent.rglob("*")) == before
    assert (elsewhere / file).read_text() == "mine"


def test_an_empty_folder_is_filled(training, merger):
    (training / "hf").mkdir()
    merge.merge(training, training / "hf")
    assert (training / "hf" / "config.json").is_file()


def test_the_current_folder_may_be_named_by_a_dot(training, merger, monkeypatch):
    """Kind: ``with_name`` of a path that has no name."""
    (training / "hf").mkdir()
    monkeypatch.chdir(training / "hf")
    merge.merge(training, Path("."))
    assert (training / "hf" / "config.json").read_text() == "{}"
    assert not list(training.glob("*.unfinished"))


def test_a_link_stays_one(training, merger, tmp_path):
    (tmp_path / "disk").mkdir()
    (training / "hf").symlink_to(tmp_path / "disk")
    merge.merge(training, training / "hf")
    assert (training / "hf").is_symlink()
    assert (tmp_path / "disk" / "config.json").is_file()


def test_the_command_shows_no_traceback(training, monkeypatch):
    (training / ACTOR / "fsdp_config.json").unlink()
    monkeypatch.setattr(sys, "argv", ["merge", "--checkpoints", str(training), "--out", str(training / "hf")])
    with pytest.raises(SystemExit, match="can't be merged"):
        merge.main()
