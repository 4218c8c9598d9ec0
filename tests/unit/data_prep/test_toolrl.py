"""ToolRL's data: conversion, split, checks, download."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from data_prep import toolrl
from data_prep.download import DownloadFailed, fetch
from data_prep.sources import BadSource
from data_prep.toolrl import prepare, split_order
from tests.toolrl_rows import raw_row, write_original

ANSWER = '<think> t </think>\n<tool_call>\n{{"name": "f", "parameters": {{"a": {}}}}}\n</tool_call>'


def raw_rows(number: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"tools {i}", "input": f"<user> {i} </user>", "output": ANSWER.format(i)} for i in range(number)
    ]


def write_raw(path, rows) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def test_split_is_toolrls(tmp_path):
    """Seed numpy with 31415, shuffle the list in place, hold out the last 2 %."""
    rows = list(range(150))
    np.random.seed(31415)
    np.random.shuffle(rows)
    train, test = split_order(150)
    assert [*train, *test] == rows
    assert len(test) == 3


def test_raw_file_becomes_rows_in_verls_schema(tmp_path):
    rows = raw_rows(100)
    report = prepare(write_raw(tmp_path / "raw.json", rows), tmp_path / "out")
    train = Dataset.from_parquet(str(tmp_path / "out" / "train.parquet"))
    test = Dataset.from_parquet(str(tmp_path / "out" / "test.parquet"))
    assert (len(train), len(test)) == (98, 2)
    first = rows[split_order(100)[0][0]]
    assert train[0] == {
        "data_source": "rlla",
        "prompt": [
            {"role": "system", "content": first["instruction"]},
            {"role": "user", "content": first["input"]},
        ],
        "ability": "math",
        "reward_model": {"ground_truth": first["output"], "style": "rule"},
        "extra_info": {
            "index": 0,
            "input": first["input"],
            "instruction": first["instruction"],
            "output": first["output"],
            "split": "train",
        },
    }
    assert test[1]["extra_info"]["split"] == "test"
    assert report.answers == {"tool_call": 100}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["sha256"]["train.parquet"] == toolrl.sha256(tmp_path / "out" / "train.parquet")
    assert written["rows"] == {"train": 98, "test": 2}
    assert not (tmp_path / "out" / toolrl.WORK).exists()


def test_a_parquet_of_the_originals_form_passes_unchanged(tmp_path):
    rows = write_original(tmp_path / "test.parquet", 80)
    report = prepare(str(tmp_path / "test.parquet"), tmp_path / "out")
    assert Dataset.from_parquet(str(tmp_path / "out" / "test.parquet")).to_list() == rows
    assert report.rows == {"test": 80}
    assert report.answers == {"tool_call": 70, "response": 10}
    assert set(report.calls) == {0, 1, 2, 3, 4, 5}


def test_thoughts_that_quote_the_tag_are_rejected_and_long_prompts_counted(tmp_path, toy_model):
    """ToolRL's SFT split has such thoughts, which cannot be used as a reference."""
    rows = [raw_row(seed) for seed in range(100)]
    quoting = [10, 11, 50]
    for number in quoting:
        rows[number]["output"] = rows[number]["output"].replace("a tool.", "a <tool_call> block.")
    for row in rows[:20]:
        row["instruction"] *= 3
    source = write_raw(tmp_path / "raw.json", rows)
    with pytest.raises(BadSource, match="row 10: the tool calls of output do not parse"):
        prepare(source, tmp_path / "strict")
    report = prepare(source, tmp_path / "lenient", skip_bad=True, tokenizer=str(toy_model), max_prompt_tokens=2048)
    rejects = [json.loads(line) for line in (tmp_path / "lenient" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == quoting
    assert report.rows == {"train": 96, "test": 1, "rejected": 3}
    assert report.prompt_tokens["above_the_limit"] == 18


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"output": ""}, "output is absent, empty"),
        ({"input": None}, "input is absent"),
        ({"output": "<think> t </think>"}, "neither <tool_call> nor <response>"),
        ({"output": "<think> t </think>\n<tool_call>\n{oops}\n</tool_call>"}, "do not parse"),
        ({"output": "<think> t </think>\n<tool_call>\n{}"}, "do not parse"),
        ({"output": ANSWER.format(1).replace('"f"', "7")}, "needs a name and a dictionary"),
        ({"output": ANSWER.format(1).replace("</think>\n", "</think> ")}, "does not have the format"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, fault):
    rows = raw_rows(100)
    rows[7] |= change
    source = write_raw(tmp_path / "raw.json", rows)
    with pytest.raises(BadSource, match=f"row 7: .*{fault}"):
        prepare(source, tmp_path / "out")
    report = prepare(source, tmp_path / "out", skip_bad=True)
    assert report.rows == {"rejected": 1, "train": 98, "test": 1}


def test_broken_files_are_named(tmp_path):
    (tmp_path / "half.json").write_text(json.dumps(raw_rows(3))[:-40])
    with pytest.raises(BadSource, match=r"half\.json is not a complete JSON array"):
        prepare(str(tmp_path / "half.json"), tmp_path / "out")
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(BadSource, match=r"expected a \.json or a \.parquet, not \.csv"):
        prepare(str(tmp_path / "rows.csv"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such file"):
        prepare(str(tmp_path / "absent.json"), tmp_path / "out")


VERL_ROW = {
    "data_source": "rlla",
    "prompt": [{"role": "system", "content": "tools"}, {"role": "user", "content": "ask"}],
    "ability": "math",
    "reward_model": {"ground_truth": ANSWER.format(1), "style": "rule"},
    "extra_info": {"index": 0, "input": "i", "instruction": "t", "output": "o", "split": "train"},
}


def write_parquet(path, rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prompt": "a text"}, "prompt is a text; expected a list of messages"),
        ({"prompt": None}, "prompt is None; expected a list of messages"),
        ({"prompt": []}, r"prompt is \[\]"),
        ({"prompt": ["a", "b"]}, "prompt has 'a' as message 0"),
        ({"prompt": [None]}, "prompt has None as message 0"),
        ({"prompt": 7}, "prompt is 7"),
        ({"prompt": [{"role": "user"}]}, "message 0 whose content is absent"),
        ({"prompt": [{"role": "user", "content": None}]}, "message 0 whose content is absent"),
        ({"prompt": [{"role": 1, "content": "x"}]}, r"message 0 whose role is 1 \(int\)"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "message 0 whose content is"),
        ({"data_source": None}, "data_source is absent"),
        ({"ability": 3}, r"ability is 3 \(int\)"),
        ({"reward_model": None}, "reward_model is 'None'; expected ground_truth, style"),
        ({"reward_model": "rule"}, "reward_model is 'rule'"),
        ({"reward_model": {"style": "rule"}}, "reward_model.ground_truth is absent"),
        ({"reward_model": {"ground_truth": ["x"], "style": "rule"}}, r"reward_model.ground_truth is \['x'\] \(list\)"),
        ({"extra_info": None}, "extra_info is 'None'"),
        ({"extra_info": VERL_ROW["extra_info"] | {"index": None}}, "extra_info.index is None"),
        ({"extra_info": VERL_ROW["extra_info"] | {"index": "7"}}, "extra_info.index is '7'"),
        ({"extra_info": VERL_ROW["extra_info"] | {"index": 1.5}}, "extra_info.index is 1.5"),
        ({"extra_info": VERL_ROW["extra_info"] | {"split": None}}, "extra_info.split is absent"),
        ({"extra_info": VERL_ROW["extra_info"] | {"input": b"\xff"}}, "extra_info.input is"),
        *(({key: "removed"}, f"there is no column '{key}'; there are ") for key in VERL_ROW),
    ],
)
def test_an_odd_parquet_is_named_by_file_row_and_fault(tmp_path, change, fault):
    """Kind: an internal traceback, or a row that only fails in training."""
    rows = [{**VERL_ROW, **change} for _ in range(2)]  # a parquet's columns have one type
    if "removed" in change.values():
        rows = [{key: value for key, value in row.items() if key not in change} for row in rows]
    source = write_parquet(tmp_path / "odd.parquet", rows)
    with pytest.raises(BadSource, match=rf"odd\.parquet: row 0: .*{fault}"):
        prepare(source, tmp_path / "out")


def test_columns_that_are_not_kept_are_named(tmp_path, caplog):
    """Kind: a part of the data is dropped silently, or stops the job with a traceback."""
    prompt = [turn | {"name": None} for turn in VERL_ROW["prompt"]]
    info = VERL_ROW["extra_info"] | {"tools_kwargs": "t"}
    row = {**VERL_ROW, "agent_name": "a", "extra_info": info, "prompt": prompt}
    prepare(write_parquet(tmp_path / "train.parquet", [row]), tmp_path / "out")
    assert Dataset.from_parquet(str(tmp_path / "out" / "train.parquet")).to_list() == [VERL_ROW]
    (message,) = caplog.messages
    assert all(name in message for name in ("agent_name", "extra_info.tools_kwargs", "prompt.name"))
    caplog.clear()
    prepare(write_parquet(tmp_path / "train.parquet", [VERL_ROW]), tmp_path / "out")
    assert caplog.messages == []


def test_a_null_cell_after_good_rows_is_named_or_left_out(tmp_path):
    rows = [VERL_ROW] * 300 + [{**VERL_ROW, "prompt": None}] + [VERL_ROW]  # beyond the first batch
    source = write_parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(BadSource, match=r"train\.parquet: row 300: prompt is None"):
        prepare(source, tmp_path / "out")
    assert prepare(source, tmp_path / "out", skip_bad=True).rows == {"rejected": 1, "train": 301}


def test_a_text_that_is_no_utf_8_is_named(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"ok", b"\xff\xfe"]).buffers()[1:]])
    pq.write_table(pa.table({"data_source": bad}), tmp_path / "train.parquet")
    with pytest.raises(BadSource, match=r"train\.parquet: row [01]: "):
        list(toolrl.read_parquet(tmp_path / "train.parquet"))


@pytest.mark.parametrize("name", ["train.parquet", "raw.json"])
@pytest.mark.parametrize("cut", [0, 1, 7, 300, -1, -7, -300])
def test_a_cut_file_is_named(tmp_path, name, cut):
    """Kind: a file that is cut off or empty."""
    path = tmp_path / name
    write_parquet(path, [VERL_ROW] * 20) if name == "train.parquet" else write_raw(path, raw_rows(20))
    path.write_bytes(path.read_bytes()[:cut])
    kind = "parquet" if name == "train.parquet" else "JSON array"
    with pytest.raises(BadSource, match=rf"{name} is not a (complete )?{kind}"):
        prepare(str(path), tmp_path / "out")


def test_a_damaged_parquet_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([VERL_ROW] * 200), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    with pytest.raises(BadSource, match=r"train\.parquet"):
        prepare(str(path), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"a": 1}', "is not a JSON array: it begins with map"),
        ('"text"', "is not a JSON array"),
        ('{"instruction": "a"}\n{"instruction": "b"}\n', "is not a JSON array"),
        ("[1]", "row 0: it is int; expected an object"),
        ('[["a"]]', "row 0: it is list"),
        ("[null]", "row 0: it is NoneType"),
        ('[{"instruction": [{"role": "user", "content": "x"}]}]', "row 0: instruction is a list of messages; expected"),
        ('[{"instruction": 7}]', r"row 0: instruction is 7 \(int\)"),
        ('[{"instruction": "a", "input": "b", "output": {"x": 1}}]', "row 0: output is"),
        (b'[{"instruction": "\xff", "input": "b", "output": "c"}]', "is not a complete JSON array, after 0 rows"),
        ("[" * 5000, "is not a complete JSON array"),
        ("<html>not found</html>", "is not a complete JSON array"),
        ("[]", "leaves no row for train"),
    ],
)
def test_an_odd_raw_file_is_named(tmp_path, content, fault):
    (tmp_path / "raw.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadSource, match=f"(?s)raw.json.*{fault}"):
        prepare(str(tmp_path / "raw.json"), tmp_path / "out")


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSource, match=r"--tokenizer .*empty cannot be used"):
        prepare(write_raw(tmp_path / "raw.json", raw_rows(100)), tmp_path / "out", tokenizer=str(tmp_path / "empty"))


# ---------------------------------------------------------------- downloads


class Source(BaseHTTPRequestHandler):
    """A server whose file may change between two requests, and whose transfers may be interrupted."""

    files: ClassVar[dict[str, bytes]] = {}
    validators: ClassVar[bool] = True
    breaks: ClassVar[list[str]] = []  # how each of the next answers ends, in order
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        how = self.breaks.pop(0) if self.breaks else "whole"
        body = self.files[self.path]
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and condition in (None, tag) else 0
        if how.isdecimal():
            self.send_response(int(how))
            body = b"an answer that is no file"
        elif asked and start >= len(body):
            self.send_response(416)
            body = b""
        else:
            self.send_response(206 if start else 200)
            body = body[start:]
        if self.validators:
            self.send_header("ETag", tag)
        if how == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body) // 2, body[: len(body) // 2]))  # and no last chunk
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if how == "half" else body)

    def log_message(self, *args):
        """Log nothing."""


OLD, NEW = b"old" * 50_000, b"new!" * 50_000


@pytest.fixture(params=[True, False], ids=["with ETag", "without"])
def server(request):
    Source.files, Source.breaks, Source.asked = {"/rows.json": OLD}, [], []
    Source.validators = request.param
    with ThreadingHTTPServer(("127.0.0.1", 0), Source) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # seconds until it can stop
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("how", ["half", "chunked", "404", "503", "204", "206", "416"])
def test_a_download_that_fails_leaves_no_file(tmp_path, server, how):
    Source.breaks = [how]
    with pytest.raises(DownloadFailed, match="Run the same command again"):
        fetch(f"{server}/rows.json", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetch(f"{server}/rows.json", tmp_path).read_bytes() == OLD


@pytest.mark.parametrize("new", [NEW, NEW[: len(OLD) // 4], NEW[: len(OLD) // 2], NEW[: len(OLD)], b""])
def test_a_file_that_changed_between_two_tries_is_the_new_one(tmp_path, server, new):
    """Kind: parts of the old and the new version end up in one file; either may be longer."""
    Source.breaks = ["half"]
    with pytest.raises(DownloadFailed):
        fetch(f"{server}/rows.json", tmp_path)
    Source.files["/rows.json"] = new
    assert fetch(f"{server}/rows.json", tmp_path).read_bytes() == new


@pytest.mark.parametrize("left", [OLD[:1000], OLD, OLD + b"more"])
def test_what_an_earlier_version_left_is_not_gone_on_with(tmp_path, server, left):
    """Kind: half a file of unknown origin is taken for the beginning or, after a 416, for the whole file."""
    (tmp_path / "rows.json.part").write_bytes(left)
    Source.files["/rows.json"] = NEW
    assert fetch(f"{server}/rows.json", tmp_path).read_bytes() == NEW


def test_a_file_is_fetched_once_and_from_where_it_is_asked_for(tmp_path, server):
    """Kind: a file with the same name from another source is taken for the requested one."""
    Source.files |= {"/other/rows.json": NEW, "/rows.json?version=2": NEW}
    for _ in range(2):
        assert fetch(f"{server}/rows.json", tmp_path).read_bytes() == OLD
    assert Source.asked == ["/rows.json"]
    assert fetch(f"{server}/other/rows.json", tmp_path).read_bytes() == NEW
    assert fetch(f"{server}/rows.json", tmp_path).read_bytes() == OLD
    assert fetch(f"{server}/rows.json?version=2", tmp_path).read_bytes() == NEW
    Source.breaks = ["half"]
    with pytest.raises(DownloadFailed):
        fetch(f"{server}/rows.json", tmp_path)
    assert fetch(f"{server}/rows.json?version=2", tmp_path).read_bytes() == NEW  # the existing file is unchanged


@pytest.mark.parametrize(
    ("path", "name"), [("/my%20rows.json#part", "my rows.json"), ("/a/..%2Frows.json", "rows.json")]
)
def test_the_file_s_name_is_the_address_s_last_part(tmp_path, server, path, name):
    Source.files[path.partition("#")[0]] = OLD
    found = fetch(f"{server}{path}".replace("http", "HTTP"), tmp_path)
    assert (found.name, found.parent) == (name, tmp_path)


def test_an_address_without_a_file_is_refused(tmp_path):
    for address in (
        "http://127.0.0.1:9",
        "http://127.0.0.1:9/",
        "http://127.0.0.1:9/a/..",
        "http://127.0.0.1:9/data/?a=rows.json",
    ):
        with pytest.raises(DownloadFailed, match="does not name a file"):
            fetch(address, tmp_path)


def test_no_network_says_what_to_do(tmp_path):
    with pytest.raises(DownloadFailed, match="download the file elsewhere and pass its path"):
        fetch("http://127.0.0.1:9/rows.json", tmp_path)
