"""BFCL's checkers on known answers, in BFCL's environment, without a model."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from recipes.toolrl.evaluate import bfcl_python
from recipes.toolrl.scores import CATEGORIES, PARTS, scores
from tests.conftest import ROOT

ANSWERS = Path(__file__).with_name("bfcl_answers.py")
#: Items of bfcl-eval 2026.3.23 that no answer can satisfy: the truth contradicts the tool's description, or has a type
#: that the checker's Java parser cannot produce.
UNANSWERABLE = {
    "simple_java": {"simple_java_36", "simple_java_65"},  # a list of values of several types
    "live_simple": {"live_simple_106-63-0", "live_simple_112-68-0"},  # no value of a required parameter is allowed
    "live_multiple": {
        "live_multiple_862-181-3",  # the truth demands a parameter that the tool lacks
        "live_multiple_964-207-0",  # the truth lacks a required parameter
    },
}


def python(root: Path, *arguments: object) -> None:
    environment = {**os.environ, "BFCL_PROJECT_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [str(bfcl_python()), *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["right", "broken"])
def test_right_answers_score_full_and_broken_ones_nothing(kind, tmp_path):
    root = tmp_path / "bfcl"
    python(root, ANSWERS, kind, *CATEGORIES)
    python(root, "-m", "recipes.toolrl.bfcl", "score", "--categories", *CATEGORIES)
    categories = json.loads((root / "scores.json").read_text())["categories"]
    assert tuple(categories) == CATEGORIES
    totals = {part: sum(categories[name]["total"] for name in names) for part, names in PARTS.items()}
    assert totals == {"non_live": 1150, "live": 1351, "multi_turn": 800}
    for name, count in categories.items():
        if kind == "broken":
            assert count["correct"] == 0, name
            continue
        (path,) = (root / "score").rglob(f"BFCL_v4_{name}_score.json")
        wrong = {json.loads(line)["id"] for line in path.read_text().splitlines()[1:]}
        assert wrong == UNANSWERABLE.get(name, set())
        assert count["correct"] == count["total"] - len(wrong)
    if kind == "right":  # our parts are the package's own
        with (root / "score" / "data_overall.csv").open() as file:
            (own,) = csv.DictReader(file)
        ours = scores(categories)
        assert float(own["Non-Live AST Acc"].rstrip("%")) == pytest.approx(ours["non_live"], abs=0.006)
        assert float(own["Live Acc"].rstrip("%")) == pytest.approx(ours["live"], abs=0.006)
        assert float(own["Multi Turn Acc"].rstrip("%")) == pytest.approx(ours["multi_turn"], abs=0.006)


@contextmanager
def oracle(root: Path, failing: str, refused: str) -> Iterator[str]:
    """A server that knows the answers; yields its address."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "BFCL_PROJECT_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [str(bfcl_python()), str(ANSWERS), "serve", str(port), failing, refused, *CATEGORIES]
    server = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def evaluate(out: Path, address: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "recipes.toolrl.evaluate", "--model", "oracle", "--server", address]
    command += ["--out", str(out), "--runs", "1", "--limit", "2", "--threads", "4", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_questions_are_asked_in_turns_and_failed_ones_again(tmp_path):
    """The handler end to end: several turns, tools that run, replies with any characters, a failing server, a refused
    item, one with little room for a reply, and a result file cut off by a kill."""
    with oracle(tmp_path / "oracle", failing="parallel_0", refused="multiple_1") as address:
        failed = evaluate(tmp_path / "out", address)
    assert failed.returncode != 0
    assert "1 items failed and stay open; the first: parallel_0" in failed.stderr
    assert not (tmp_path / "out" / "evaluation.json").exists()
    (cut,) = (tmp_path / "out").rglob("BFCL_v4_simple_java_result.json")
    cut.write_bytes(cut.read_bytes()[:-20])

    with oracle(tmp_path / "oracle", failing="-", refused="multiple_1") as address:
        result = evaluate(tmp_path / "out", address)
        assert result.returncode == 0, result.stdout + result.stderr
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (run,) = evaluation["runs"]
    assert {name: (count["correct"], count["total"]) for name, count in run["categories"].items()} == {
        name: (1 if name == "multiple" else 2, 2) for name in CATEGORIES
    }
    assert run["format"]["replies"] == run["format"]["correct"] > 27
    assert run["refused"] == {"items": 1, "at_once": 1, "categories": {"multiple": 1}}
    assert "run 1: the server refused 1 of 28 items" in result.stdout
    (path,) = (tmp_path / "out" / "run1" / "result").rglob("BFCL_v4_multi_turn_base_result.json")
    log = json.dumps(json.loads(path.read_text().splitlines()[0])["inference_log"])
    assert '"role": "tool"' in log

    again = evaluate(tmp_path / "out", "http://127.0.0.1:9/v1")  # all replies exist: no server is needed
    assert again.returncode == 0, again.stdout + again.stderr
    other = subprocess.run(
        [
            sys.executable,
            "-m",
            "recipes.toolrl.evaluate",
            "--model",
            "other",
            "--out",
            str(tmp_path / "out"),
            "--limit",
            "2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "holds an evaluation with model oracle, not other" in other.stderr


@pytest.mark.full
def test_a_server_that_refuses_everything_ends_the_evaluation(tmp_path):
    """Otherwise every item would count as wrong, and the result would be 0 per cent."""
    categories = ("--categories", "multiple", "live_simple")
    with oracle(tmp_path / "oracle", failing="-", refused="*") as address:
        refused = evaluate(tmp_path / "out", address, *categories)
    assert refused.returncode != 0
    assert "the server refused 4 of 4 items (HTTP 400): 2 of 2 of live_simple, 2 of 2 of multiple" in refused.stderr
    assert "too long" in refused.stderr
    with oracle(tmp_path / "oracle", failing="-", refused="-") as address:
        result = evaluate(tmp_path / "out", address, *categories)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["runs"]
    assert all(count == {"correct": 2, "total": 2} for count in run["categories"].values())
    assert run["refused"]["items"] == 0
