"""The metrics' file across starts that resume or start over: nothing is lost or mixed up."""

import json
from pathlib import Path

import pytest

from saw.records import metrics_file


def log(path: Path, *records: tuple[int, dict]) -> None:
    path.write_text("".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in records))


def test_a_resumed_training_keeps_what_was_logged_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, (0, {"val": 0}), (1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}))
    metrics_file.begin(path, resume=True)
    log(path, (2, {"val": 20}), (3, {"a": 33}))  # from the checkpoint of step 2, validated there
    metrics_file.begin(path, resume=True)
    log(path, (4, {"a": 4}))
    assert metrics_file.read(path) == {0: {"val": 0}, 1: {"a": 1}, 2: {"a": 2, "val": 20}, 3: {"a": 33}, 4: {"a": 4}}


def test_steps_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, (1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}))
    metrics_file.begin(path, resume=True)
    log(path, (2, {"a": 22}))
    assert metrics_file.read(path) == {1: {"a": 1}, 2: {"a": 22}}


def test_more_than_nine_parts_stay_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 13):
        metrics_file.begin(path, resume=True)
        log(path, (step, {"a": step}))
    assert list(metrics_file.read(path)) == list(range(1, 13))


def test_a_new_training_starts_with_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, (1, {"a": 1}))
    metrics_file.begin(path, resume=True)
    log(path, (2, {"a": 2}))
    (tmp_path / "metrics.notes.jsonl").write_text("mine")
    metrics_file.begin(path, resume=False)
    assert metrics_file.read(path) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.notes.jsonl"]


def test_an_empty_start_and_a_line_cut_off_are_no_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, (1, {"a": 1}))
    metrics_file.begin(path, resume=True)
    path.touch()
    metrics_file.begin(path, resume=True)
    path.write_text('{"step": 2, "da')
    assert metrics_file.read(path) == {1: {"a": 1}}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.1.jsonl", "metrics.jsonl"]


def test_a_number_that_is_missing_is_not_given_again(tmp_path):
    """Kind: one part overwrites another. The number is one above the largest, whatever the number of parts."""
    path = tmp_path / "metrics.jsonl"
    log(tmp_path / "metrics.2.jsonl", (1, {"a": 1}))
    log(path, (2, {"a": 2}))
    assert metrics_file.put_aside(path) == tmp_path / "metrics.3.jsonl"
    (tmp_path / "metrics.7.jsonl").mkdir()  # no part, but its name is taken
    log(path, (3, {"a": 3}))
    assert metrics_file.put_aside(path) == tmp_path / "metrics.8.jsonl"
    assert not path.exists()
    assert metrics_file.exists(path)
    assert metrics_file.read(path) == {1: {"a": 1}, 2: {"a": 2}, 3: {"a": 3}}


MINE = ("metrics.old.2.jsonl", "metrics.02.jsonl", "metrics.0.jsonl", "metrics.2.jsonl.bak", "my.metrics.2.jsonl")


@pytest.mark.parametrize("name", [*MINE, "metrics.²3.jsonl", "metrics.-1.jsonl", "metrics.1.json"])
def test_a_user_s_file_is_no_part(tmp_path, name):
    """Kind: a user's file is taken for a part, and deleted, read or counted."""
    path = tmp_path / "metrics.jsonl"
    log(tmp_path / name, (99, {"mine": 1}))
    for step in (1, 2):
        log(path, (step, {"a": step}))
        metrics_file.begin(path, resume=True)
    assert sorted(part.name for part in metrics_file.parts(path)) == ["metrics.1.jsonl", "metrics.2.jsonl"]
    assert list(metrics_file.read(path)) == [1, 2]
    metrics_file.begin(path, resume=False)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_names_are_no_patterns(tmp_path):
    path = tmp_path / "run[1].jsonl"
    for step in (1, 2):
        log(path, (step, {"a": step}))
        metrics_file.begin(path, resume=True)
    assert list(metrics_file.read(path)) == [1, 2]


def test_what_was_put_aside_comes_back_unless_something_was_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, (1, {"a": 1}))
    aside = metrics_file.put_aside(path)
    path.touch()  # verl's logger opened it, and logged nothing
    metrics_file.put_back(aside, path)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    aside = metrics_file.put_aside(path)
    log(path, (2, {"a": 2}))
    metrics_file.put_back(aside, path)
    assert metrics_file.read(path) == {1: {"a": 1}, 2: {"a": 2}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2, "da', "not valid JSON"),
        ("\0\0\0", "not valid JSON"),
        ('"\\ud800', "not valid JSON"),
        ("[2]", r"expected \{\"step\": an integer"),
        ('{"step": "2", "data": {}}', "an integer"),
        ('{"step": true, "data": {}}', "an integer"),
        ('{"step": 2}', "it is {'step': 2}"),
    ],
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.1.jsonl"])
def test_a_broken_line_names_its_file_and_number(tmp_path, name, line, message):
    """Kind: a fault is reported without its file, whichever part it is in."""
    log(tmp_path / "metrics.2.jsonl", (1, {"a": 1}))
    (tmp_path / name).write_text(f'{{"step": 1, "data": {{}}}}\n{line}\n{{"step": 3, "data": {{}}}}\n')
    with pytest.raises(ValueError, match=rf"{name}, line 2: .*{message}"):
        metrics_file.read(tmp_path / "metrics.jsonl")


def test_only_a_line_feed_ends_a_line(tmp_path):
    """Kind: JSON with a character at which ``str.splitlines`` splits, also in a last line that is cut off."""
    path = tmp_path / "metrics.jsonl"
    odd = "a\u2028b\u2029c\u0085d\x1ce"
    whole = json.dumps({"step": 1, "data": {"note": odd.replace("\x1c", "")}}, ensure_ascii=False).encode()
    path.write_bytes(whole + b"\n" + whole.replace(b'"step": 1', b'"step": 2')[:-20].rstrip(b"\x85"))
    assert metrics_file.read(path) == {1: {"note": odd.replace("\x1c", "")}}
    path.write_bytes(whole + b"\n" + '{"step": 2, "data": {"é'.encode()[:-1])  # cut within a character
    assert list(metrics_file.read(path)) == [1]


def test_a_whole_last_line_without_a_line_feed_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "data": {"a": 1}}\n{"step": 2, "data": {"a": 2}}')
    assert list(metrics_file.read(path)) == [1, 2]


def test_a_line_that_is_nested_without_end_is_a_broken_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
        metrics_file.read(path)
    path.write_text('{"step": 1, "data": {}}\n' + "[" * 100_000)  # cut off
    assert metrics_file.read(path) == {1: {}}
