"""From right answers to the table, by hand."""

import csv
import json
import statistics

import pytest

from recipes.common.paper_table import Measurement
from recipes.toolrl.scores import CATEGORIES, scores
from recipes.toolrl.table import TABLE
from saw.report.tables import write_csv

COUNTS = {
    **{"simple_python": (200, 400), "simple_java": (10, 100), "simple_javascript": (15, 50)},  # 50, 10, 30: 30
    **{"multiple": (100, 200), "parallel": (80, 200), "parallel_multiple": (40, 200)},  # 50, 40, 20
    **{"live_simple": (129, 258), "live_multiple": (351, 1053), "live_parallel": (4, 16)},
    "live_parallel_multiple": (6, 24),
    **{"multi_turn_base": (8, 200), "multi_turn_long_context": (4, 200)},
    **{"multi_turn_miss_func": (2, 200), "multi_turn_miss_param": (2, 200)},
}


def counts(add: int = 0) -> dict[str, dict[str, int]]:
    return {name: {"correct": correct + add, "total": total} for name, (correct, total) in COUNTS.items()}


def test_scores_by_hand():
    result = scores(counts())
    assert result["non_live"] == pytest.approx((30 + 50 + 40 + 20) / 4)
    assert result["live"] == pytest.approx(100 * (129 + 351 + 4 + 6) / 1351)
    assert result["multi_turn"] == pytest.approx((4 + 2 + 1 + 1) / 4)
    assert result["mean_of_parts"] == pytest.approx((35 + result["live"] + 2) / 3)
    assert result["mean_by_items"] == pytest.approx((35 * 1150 + result["live"] * 1351 + 2 * 800) / 3301)


def test_a_missing_category_is_an_error():
    with pytest.raises(KeyError, match="live_parallel"):
        scores({name: count for name, count in counts().items() if name != "live_parallel"})


def test_measurement_separates_the_two_spreads():
    measured = Measurement(((1.0, 3.0), (5.0, 7.0), (9.0, 11.0)))
    assert measured.mean == 6.0
    assert measured.sd_seeds == pytest.approx(4.0)  # of 2, 6, 10
    assert measured.sd_runs == pytest.approx(2**0.5)
    assert str(measured) == "6.00 ± 4.00 (1.41)"
    assert str(Measurement(((1.0,),))) == "1.00"


def write_evaluation(
    runs, size, method, seed, *, add=0, limit=None, reading="as_released", rehearsal=False, overrides=()
):
    folder = runs / f"{size}_{method}_{reading}_seed{seed}"
    (folder / "bfcl").mkdir(parents=True)
    cell = {"size": size, "method": method, "reading": reading, "seed": seed, "overrides": list(overrides)}
    (folder / "cell.json").write_text(json.dumps({**cell, "size_override": "toy" if rehearsal else None}))
    form = {"correct": 50, "replies": 200}
    evaluations = [{"categories": counts(add + i), "package_overall": 12.5, "format": form} for i in (0, 1)]
    content = {
        "settings": {"limit": limit, "categories": list(CATEGORIES)},
        "runs": evaluations,
        "provenance": {"commit": "abc", "machine": "m", "versions": "v", "command": "c"},
    }
    (folder / "bfcl" / "evaluation.json").write_text(json.dumps(content))


def test_items_that_the_server_refused_are_told(tmp_path):
    write_evaluation(tmp_path, "3b", "grpo", 1)
    assert "refused" not in TABLE.make(tmp_path)[0]
    path = tmp_path / "3b_grpo_as_released_seed1" / "bfcl" / "evaluation.json"
    content = json.loads(path.read_text())
    content["runs"][1]["refused"] = {"items": 3}
    path.write_text(json.dumps(content))
    assert "3b_grpo_as_released_seed1: the server refused 3 items" in TABLE.make(tmp_path)[0]


def test_table_holds_ours_the_papers_and_what_was_not_run(tmp_path):
    write_evaluation(tmp_path, "1.5b", "saw_gdpo", 1)
    write_evaluation(tmp_path, "1.5b", "saw_gdpo", 2, add=1)
    text, rows, _ = TABLE.make(tmp_path)
    assert len(rows) == 13
    row = next(
        row for row in rows if (row["model"], row["method"], row["reading"]) == ("1.5b", "saw_gdpo", "as_released")
    )
    ours = [statistics.fmean(scores(counts(add + i))["mean_of_parts"] for i in (0, 1)) for add in (0, 1)]
    assert row["mean_of_parts"] == pytest.approx(statistics.fmean(ours))
    assert row["mean_of_parts_sd_seeds"] == pytest.approx(statistics.stdev(ours))
    assert (row["seeds"], row["evaluations"], row["paper_overall"], row["format"]) == (2, 2, 34.02, 25.0)
    assert row["difference"] == pytest.approx(row["mean_of_parts"] - 34.02)
    assert text.count("| not run |") == 12
    assert "| 1.5b | saw_gdpo | as_released | 2 x 2 |" in text
    assert "| 3b | gdpo | controlled | not run |  |  |  |  |  |  |  | 35.58 |  |  |" in text
    assert "| 3b | gradient_gdpo | controlled | not run |  |  |  |  |  |  |  |  |  |  |" in text
    assert "1.5b_saw_gdpo_as_released_seed2: commit abc, m, v; c" in text
    write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read[0]["mean_of_parts"] == ""
    assert float(read[rows.index(row)]["mean_of_parts"]) == pytest.approx(row["mean_of_parts"], abs=1e-4)


def test_table_says_what_a_reader_must_know(tmp_path):
    write_evaluation(tmp_path, "3b", "grpo", 1, limit=1, rehearsal=True)
    text, rows, _ = TABLE.make(tmp_path)
    assert len(rows) == 13  # the cell of another reading has its own row
    assert "rehearsal with a toy model" in text
    assert "first 1 of each category only" in text
    assert "| 3b | grpo | as_released | 1 x 2 |" in text


def test_an_evaluation_of_some_categories_is_left_out(tmp_path):
    write_evaluation(tmp_path, "3b", "grpo", 1)
    path = tmp_path / "3b_grpo_as_released_seed1" / "bfcl" / "evaluation.json"
    content = json.loads(path.read_text())
    content["settings"]["categories"] = ["multiple"]
    path.write_text(json.dumps(content))
    text, rows, _ = TABLE.make(tmp_path)
    assert all(row["seeds"] == 0 for row in rows)
    assert "left out" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reading": "controlled"}, "reading"),
        ({"rehearsal": True}, "toy model"),
        ({"overrides": ["trainer.total_epochs=1"]}, "overrides"),
        ({"limit": 1}, "limited evaluation"),
        ({"reading": "controlled", "limit": 1}, "reading; limited evaluation"),
    ],
)
def test_what_was_not_measured_as_the_paper_did_has_no_difference(tmp_path, changes, reason):
    """Kind: a difference from the paper that comes from the set-up: reading, model, a setting, some of the items."""
    write_evaluation(tmp_path, "1.5b", "saw_gdpo", 1, **changes)
    text, rows, _ = TABLE.make(tmp_path)
    (row,) = [row for row in rows if row["seeds"]]
    assert (row["difference"], row["not_compared_for"]) == (None, reason)
    assert row["paper_overall"] == 34.02
    assert f"| 34.02 |  | {reason} |" in text


def test_one_seed_that_was_measured_otherwise_is_enough(tmp_path):
    """A mean over seeds, one of which was trained with another setting, is not comparable with the paper's."""
    write_evaluation(tmp_path, "1.5b", "saw_gdpo", 1)
    write_evaluation(tmp_path, "1.5b", "saw_gdpo", 2, overrides=["trainer.total_epochs=1"])
    (row,) = [row for row in TABLE.make(tmp_path)[1] if row["seeds"]]
    assert (row["seeds"], row["difference"], row["not_compared_for"]) == (2, None, "overrides")


def test_a_training_that_does_not_say_its_reading_is_left_out(tmp_path):
    write_evaluation(tmp_path, "3b", "grpo", 1)
    path = tmp_path / "3b_grpo_as_released_seed1" / "cell.json"
    cell = json.loads(path.read_text())
    del cell["reading"]
    path.write_text(json.dumps({**cell, "kl": "as_released"}))
    text, rows, _ = TABLE.make(tmp_path)
    assert all(row["seeds"] == 0 for row in rows)
    assert "does not name the reading" in text
