"""Table 1 rehearsed: the same stages, commands and checks as at full size, with a toy model on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.toolrl.scores import CATEGORIES
from saw.report import read_history
from tests.conftest import ROOT

LIMIT = 1200  # seconds; it takes about 300


def rehearse(out: Path, *options: str, timeout: float = LIMIT) -> subprocess.CompletedProcess:
    """What scripts/reproduce_table1.sh does after the set-up."""
    command = [sys.executable, "-m", "recipes.toolrl.reproduce", "--rehearse", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.full
@pytest.mark.pipeline
@pytest.mark.cpu_platform  # a rehearsal trains on the CPU
def test_table_1_is_rehearsed_from_data_to_table(tmp_path):
    dry = rehearse(tmp_path, "--dry-run", timeout=60)
    assert dry.returncode == 0, dry.stderr
    assert not (tmp_path / "data").exists()

    result = rehearse(tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for line in dry.stdout.splitlines():  # the run did what the dry run printed
        if "python -m" in line:
            assert line in result.stdout

    folder = tmp_path / "1.5b_saw_gdpo_controlled_seed1"
    history = read_history(folder / "metrics.jsonl")
    assert history.steps == (1, 2)
    assert history.objectives == ("format", "correctness")
    assert (folder / "hf" / "model.safetensors").exists()
    evaluation = json.loads((folder / "bfcl" / "evaluation.json").read_text())
    assert len(evaluation["runs"]) == 2
    for run in evaluation["runs"]:
        assert {name: count["total"] for name, count in run["categories"].items()} == dict.fromkeys(CATEGORIES, 1)
        assert run["format"]["replies"] >= len(CATEGORIES)
    for path in (folder / "bfcl").rglob("*_result.json"):  # the model replied to every question
        for line in path.read_text().splitlines():
            assert "traceback" not in json.loads(line)
    table = (tmp_path / "table1.md").read_text()
    assert "| 1.5b | saw_gdpo | controlled | 1 x 2 |" in table
    assert table.count("| not run |") == 11
    assert "rehearsal with a toy model" in table
    assert (tmp_path / "table1.csv").read_text().count("\n") == 13

    again = rehearse(tmp_path, timeout=60)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done, skipped") == 6
    other = rehearse(tmp_path, "saw.options.profile=released", timeout=60)
    assert other.returncode != 0
    assert "finished with another command" in other.stderr
