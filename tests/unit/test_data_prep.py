"""ToolRL's data: conversion, split, checks, download."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from datasets import Dataset

from data_prep import toolrl
from data_prep.download import DownloadFailed, fetch
from data_prep.toolrl import BadRow, prepare, split_order

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


def test_the_original_parquet_passes_unchanged(tmp_path, shared):
    source = shared / "data" / "toolrl" / "test.parquet"
    report = prepare(str(source), tmp_path)
    assert Dataset.from_parquet(str(tmp_path / "test.parquet")).to_list() == Dataset.from_parquet(str(source)).to_list()
    assert report.rows == {"test": 80}
    assert report.answers == {"tool_call": 71, "response": 9}


def test_real_raw_rows(tmp_path, shared, toy_model):
    """The SFT split has thoughts that quote the tag; such a reference can score nothing, and is named."""
    source = str(shared / "data" / "toolrl" / "rlla_sft.json")
    with pytest.raises(BadRow, match="row 10: the tool calls of output do not parse"):
        prepare(source, tmp_path / "strict")
    report = prepare(source, tmp_path / "lenient", skip_bad=True, tokenizer=str(toy_model), max_prompt_tokens=2048)
    assert sum(report.rows.values()) == 400
    rejects = (tmp_path / "lenient" / "rejects.jsonl").read_text().splitlines()
    assert len(rejects) == report.rows["rejected"] == 17
    assert json.loads(rejects[0])["row"] == 10
    assert 0 < report.prompt_tokens["above_the_limit"] < 383


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
    with pytest.raises(BadRow, match=f"row 7: .*{fault}"):
        prepare(source, tmp_path / "out")
    report = prepare(source, tmp_path / "out", skip_bad=True)
    assert report.rows == {"rejected": 1, "train": 98, "test": 1}


def test_broken_files_are_named(tmp_path):
    (tmp_path / "half.json").write_text(json.dumps(raw_rows(3))[:-40])
    with pytest.raises(BadRow, match=r"half\.json is no complete JSON array"):
        prepare(str(tmp_path / "half.json"), tmp_path / "out")
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(BadRow, match=r"expected a \.json or a \.parquet, not \.csv"):
        prepare(str(tmp_path / "rows.csv"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such file"):
        prepare(str(tmp_path / "absent.json"), tmp_path / "out")


CONTENT = bytes(range(256)) * 4096


class _Flaky(BaseHTTPRequestHandler):
    """Serves half of what is asked for on the first request, and honours Range."""

    seen: ClassVar[list[str | None]] = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.seen.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        body = CONTENT[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if wanted else body[: len(body) // 2])

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server():
    _Flaky.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/rows.json"
        server.shutdown()


def test_a_download_goes_on_where_it_stopped(tmp_path, server):
    with pytest.raises(DownloadFailed, match="Run the same command again"):
        fetch(server, tmp_path)
    assert (tmp_path / "rows.json.part").stat().st_size == len(CONTENT) // 2
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert _Flaky.seen == [None, f"bytes={len(CONTENT) // 2}-"]
    fetch(server, tmp_path)
    assert len(_Flaky.seen) == 2  # what is there is not fetched again


def test_no_network_says_what_to_do(tmp_path):
    with pytest.raises(DownloadFailed, match="fetch the file elsewhere and pass its path"):
        fetch("http://127.0.0.1:9/rows.json", tmp_path)
