"""BFCL's result files: what is a reply, and what is asked again."""

import pytest

from recipes.common.evaluation import claim
from recipes.toolrl import evaluate as toolrl
from recipes.toolrl.bfcl import results
from recipes.toolrl.evaluate import format_counts
from saw.records.files import read_lines
from tests.json_files import BREAKS, write


def test_a_folder_is_claimed_for_its_settings(tmp_path):
    claim(tmp_path / "out", {"a": 1, "b": [1.0], "runs": 2}, free=("runs",))
    claim(tmp_path / "out", {"a": 1, "b": [1.0], "runs": 4}, free=("runs",))
    for other in ({"a": 2, "b": [1.0]}, {"a": 1, "b": [1.5]}, {"a": 1, "b": [1.0], "new": 0}):
        with pytest.raises(SystemExit, match="holds an evaluation with"):
            claim(tmp_path / "out", other)


# ---------------------------------------------------------------- BFCL's result files

TURN = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>'
MESSAGE = "Error during inference: Error code: 400 - too long"


def reply(name, text=TURN):
    return {"id": name, "result": text, "latency": 0.1}


def refused(name, at_once=True):
    traceback = "openai.BadRequestError: ..."
    wrapped = f"{traceback}\nrecipes.toolrl.bfcl.results.{results.RefusedAtOnce.__name__}: ..."
    return {"id": name, "result": MESSAGE, "traceback": wrapped if at_once else traceback}


def failed(name):
    return {"id": name, "result": "Error during inference: Connection error.", "traceback": "openai.APIConnectionError"}


def result_file(folder, category, entries, group="live"):
    write(folder / "saw" / group / f"BFCL_v4_{category}_result.json", entries)


@pytest.mark.parametrize("sign", BREAKS)
def test_a_reply_with_any_character_does_not_block_the_evaluation(sign, tmp_path):
    odd = TURN.replace(" a ", f" a{sign}b ")
    result_file(tmp_path, "multiple", [reply("multiple_0", odd), reply("multiple_1")])
    assert results.forget(tmp_path) == []
    assert list(results.replies(tmp_path)) == [odd, TURN]
    assert format_counts(tmp_path) == {"correct": 2, "replies": 2}


def test_cut_lines_and_failures_are_asked_again_and_refusals_are_not(tmp_path):
    entries = [reply("live_simple_0"), failed("live_simple_1"), refused("live_simple_2"), {"id": "live_simple_3"}, 7]
    result_file(tmp_path, "live_simple", entries)
    path = next(tmp_path.rglob("*_result.json"))
    with path.open("a") as file:
        file.write('{"id": "live_simple_4", "result": "<thi')
    left_out = results.forget(tmp_path)
    assert len(left_out) == 4
    assert any("live_simple_1: Error during inference: Connection error." in text for text in left_out)
    assert [entry["id"] for entry in read_lines(path)] == ["live_simple_0", "live_simple_2"]
    wanted = {"live_simple": [f"live_simple_{number}" for number in range(5)], "multiple": ["multiple_0"]}
    assert results.absent(tmp_path, wanted) == ["live_simple_1", "live_simple_3", "live_simple_4", "multiple_0"]


def test_a_model_that_says_so_has_not_failed(tmp_path):
    """Neither a reply that begins like BFCL's note of an error, nor one that names the error's class."""
    said = [reply("multiple_0", "Error during inference: BadRequestError"), reply("multiple_1", "BadRequestError")]
    result_file(tmp_path, "multiple", said)
    assert results.forget(tmp_path) == []
    assert results.refusals(tmp_path) == {"items": 0, "at_once": 0, "categories": {}}


def test_refusals_are_counted_and_are_no_replies(tmp_path):
    result_file(tmp_path, "live_simple", [refused("live_simple_0"), reply("live_simple_1"), refused("live_simple_2")])
    several = {"id": "multi_turn_base_0", "result": [[TURN], [TURN, "no"]]}
    result_file(tmp_path, "multi_turn_base", [several, refused("multi_turn_base_1", at_once=False)], "multi_turn")
    assert results.refusals(tmp_path) == {
        "items": 3,
        "at_once": 2,
        "categories": {"live_simple": 2, "multi_turn_base": 1},
    }
    assert format_counts(tmp_path) == {"correct": 3, "replies": 4}


def run_of(folder, at_once, later, answered, category="live_simple"):
    entries = [refused(f"{category}_{number}") for number in range(at_once)]
    entries += [refused(f"{category}_{at_once + number}", at_once=False) for number in range(later)]
    entries += [reply(f"{category}_{at_once + later + number}") for number in range(answered)]
    result_file(folder, category, entries)


@pytest.mark.parametrize(
    ("at_once", "later", "answered", "limit", "fails"),
    [
        (258, 0, 0, 0.1, True),
        (258, 0, 0, 1.0, True),  # no reply at all is no evaluation
        (10, 0, 90, 0.1, False),
        (11, 0, 89, 0.1, True),
        (11, 0, 89, 0.11, False),
        (1, 0, 99, 0.0, True),
        (0, 0, 100, 0.0, False),
        (0, 60, 40, 0.1, False),  # dialogues that the model has made too long
        (5, 60, 35, 0.1, False),
    ],
)
def test_too_many_refusals_are_a_fault(at_once, later, answered, limit, fails, tmp_path):
    run_of(tmp_path, at_once, later, answered)
    fault = results.fault_of_refusals(tmp_path, limit)
    assert (fault is not None) == fails
    if fault:
        assert f"refused {at_once} of {at_once + later + answered} items (HTTP 400)" in fault
        assert f"live_simple_0: {MESSAGE}" in fault


def test_a_category_without_any_reply_is_a_fault_in_a_large_run(tmp_path):
    run_of(tmp_path, 20, 0, 0, "live_simple")
    run_of(tmp_path, 0, 0, 980, "live_multiple")
    assert "20 of 20 of live_simple" in str(results.fault_of_refusals(tmp_path, 0.1))
    assert results.fault_of_refusals(tmp_path, 1.0) is None


def test_items_refused_at_once_can_be_asked_again(tmp_path):
    run_of(tmp_path, 2, 1, 1)
    assert len(results.forget(tmp_path, at_once=True)) == 2
    assert results.refusals(tmp_path) == {"items": 1, "at_once": 0, "categories": {"live_simple": 1}}


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_out_of_range_is_named(share, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate", "--model", "m", "--out", "o", "--max-refused", share])
    with pytest.raises(SystemExit):
        toolrl.main()
    assert f"--max-refused is {share}; expected a share between 0 and 1" in capsys.readouterr().err
