"""The step-time benchmark's table, by hand, and the committed one against its numbers."""

import pytest

from benchmarks import step
from saw.report.tables import write_csv
from saw.runs.process_tree import JobFailed
from tests.conftest import ROOT

RESULT = ROOT / "results" / "step_benchmark"


def row(turn: int, method: str, seconds: float) -> dict:
    return {"round": turn, "method": method} | dict.fromkeys(step.PARTS, 0.5) | {"step": seconds, "tokens": 48.0}


def test_a_step_is_compared_with_the_first_method_s_of_its_round(tmp_path):
    # The machine slows down by half from round to round; the method always takes a tenth more.
    rows = [
        row(turn, name, base * more)
        for turn, base in ((1, 2.0), (2, 3.0), (3, 4.5))
        for name, more in (("grpo", 1.0), ("slow", 1.1))
    ]
    text = step.table(rows)
    assert "| grpo | 3.000 |  | 0.500 |" in text
    assert "| slow | 3.300 | +10.0 % [+10.0, +10.0] | 0.500 |" in text
    assert "n = 3 steps each" in text
    write_csv(tmp_path / "steps.csv", rows)
    assert step.table(step.read(tmp_path / "steps.csv")) == text


def test_a_training_that_fails_is_one_message(monkeypatch):
    def run(folder, names, arguments):
        raise JobFailed("ended with exit code 1; the end of its log")

    monkeypatch.setattr(step, "run", run)
    monkeypatch.setattr("sys.argv", ["step"])
    with pytest.raises(SystemExit, match="the end of its log"):
        step.main()


def test_the_committed_table_is_what_its_numbers_give():
    assert step.table(step.read(RESULT / "steps.csv")) in (RESULT / "README.md").read_text()
