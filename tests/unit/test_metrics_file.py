import json
from pathlib import Path

from saw import metrics_file


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
