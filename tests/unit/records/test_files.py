"""Files that a killed process may leave cut: JSON lines with any characters, and texts that are written whole."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saw.records.files import json_lines, keep_lines, read_lines, write_whole
from tests.json_files import BREAKS, write


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=5), st.booleans())
def test_lines_come_back_whatever_characters_they_hold(tmp_path_factory, values, ensure_ascii):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    write(path, values, ensure_ascii)
    assert read_lines(path) == values
    assert keep_lines(path, lambda value: True) == []
    assert read_lines(path) == values


@pytest.mark.parametrize("sign", BREAKS)
def test_a_line_ends_with_a_line_feed_only(sign, tmp_path):
    write(tmp_path / "x.jsonl", [{"a": f"one{sign}two"}, {"a": "b"}])
    assert read_lines(tmp_path / "x.jsonl") == [{"a": f"one{sign}two"}, {"a": "b"}]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": ')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 3 is not valid JSON"):
        read_lines(tmp_path / "x.jsonl")


COMPLETE = '{"id": "a", "result": "é\u2028"}\n'.encode()


@pytest.mark.parametrize("length", range(1, len(COMPLETE)))
def test_a_line_that_is_cut_anywhere_is_left_out(length, tmp_path):
    """Also inside a multi-byte character; what is appended later begins its own line."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(COMPLETE + COMPLETE[:length])
    left_out = keep_lines(path, lambda value: True)
    whole = length == len(COMPLETE) - 1  # all but the line feed
    assert len(left_out) == (0 if whole else 1)
    assert path.read_bytes() == COMPLETE * (2 if whole else 1)
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(
    "damage", [b'{"id": "b", "res{"id": "c", "result": "x"}\n', b"\x00" * 40 + b"\n", b"\xff\xfe\n"]
)
def test_damage_in_the_middle_is_left_out_too(damage, tmp_path):
    """Lines that an earlier version appended to a cut line, or that a power failure left."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(COMPLETE + damage + COMPLETE)
    assert len(keep_lines(path, lambda value: True)) == 1
    assert path.read_bytes() == COMPLETE * 2


def test_a_text_is_there_as_a_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_whole(path, "before")
    monkeypatch.setattr(type(path), "replace", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "after")
    assert path.read_text() == "before"


@pytest.mark.parametrize("length", range(1, len(COMPLETE) - 1))
def test_a_reader_of_a_growing_file_leaves_out_what_is_not_written_yet(length, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(COMPLETE + COMPLETE[:length])
    assert [number for number, _ in json_lines(path)] == [1]
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        read_lines(path)


def test_a_broken_line_within_is_handed_over(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(COMPLETE + b"\n{]\n" + b"[" * 100_000 + b"\n" + COMPLETE)
    kinds = [(number, isinstance(value, ValueError)) for number, value in json_lines(path)]
    assert kinds == [(1, False), (3, True), (4, True), (5, False)]


def test_two_processes_that_write_one_file_do_not_write_into_each_other(tmp_path):
    """Kind: two writers use the same name for their unfinished file."""
    path = tmp_path / "running.json"
    code = "import sys, pathlib; from saw.records import files; files.write_whole(pathlib.Path(sys.argv[1]), 'other')"

    replace = type(path).replace

    def other_first(unfinished, target):
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=os.environ)
        replace(unfinished, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(path), "replace", other_first)
        write_whole(path, "this")
    assert path.read_text() == "this"
    assert [file.name for file in tmp_path.iterdir()] == ["running.json"]
