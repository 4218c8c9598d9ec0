"""Table and curves from a log."""

import json
import math

import pytest

from saw.report import plot_curves, read_history, step_line, summary_table


def write_log(path, means):
    lines = [{"step": 0, "data": {"val-core/x": 1.0}}]  # validation before training: no training metrics
    for step, mean in enumerate(means, start=1):
        data = {f"saw/format/{what}": 0.25 for what in ("cv", "weight")} | {
            "saw/format/mean": mean,
            "timing_s/step": 2.0,
        }
        lines.append({"step": step, "data": data})
    path.write_text("".join(json.dumps(line).replace("NaN", "null") + "\n" for line in lines))
    return path


def test_table_has_first_last_and_best(tmp_path):
    history = read_history(write_log(tmp_path / "m.jsonl", [0.1, math.nan, 0.9, 0.5]))
    assert history.steps == (1, 2, 3, 4)
    assert history.objectives == ("format",)
    assert math.isnan(history.of("format", "mean")[1])
    assert summary_table({"grpo": history}).splitlines()[-1] == "| grpo | format | 0.100 | 0.500 | 0.900 | 3 |"


def test_curves_are_drawn(tmp_path):
    history = read_history(write_log(tmp_path / "m.jsonl", [0.1, 0.5]))
    plot_curves({"grpo": history, "saw_gdpo": history}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_step_line():
    line = step_line(7, {"saw/format/mean": 0.5, "saw/format/weight": 0.25, "timing_s/step": 3.0})
    assert line == "step   7  format  0.500 (weight 0.25)    3.0 s"


def test_a_log_of_another_trainer_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "data": {"critic/score/mean": 1.0}}\n')
    with pytest.raises(ValueError, match="SAW's trainer"):
        read_history(tmp_path / "m.jsonl")
