"""ToolRL's format and correctness rewards, as the released code scores with its default switches."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saw.rewards import toolrl

CALL = '{"name": "f", "parameters": {"a": 1, "b": "x"}}'
TRUTH = f"<think> t </think>\n<tool_call>\n{CALL}\n</tool_call>"


def turn(*calls: str) -> str:
    return "<think> t </think>\n<tool_call>\n" + "\n".join(calls) + "\n</tool_call>"


def test_golden(shared):
    golden = json.loads((shared / "golden" / "toolrl_rewards.json").read_text())
    assert len(golden["cases"]) > 100
    for case in golden["cases"]:
        ours = toolrl.score(case["response"], case["ground_truth"])
        reference = case["scores"]["default"]
        assert ours["format"] == pytest.approx(reference["format"], abs=1e-9)
        assert ours["correctness"] == pytest.approx(reference["correctness"], abs=1e-9)
        assert ours["score"] == pytest.approx(reference["total"], abs=1e-9)


def test_by_hand():
    assert toolrl.score(TRUTH, TRUTH) == {"format": 1.0, "correctness": 3.0, "score": 4.0}
    # Right name (1), both parameter names (1), one of two values (1): 3 of 1 + 1 + 2.
    wrong_value = turn('{"name": "f", "parameters": {"a": 2, "b": "x"}}')
    assert toolrl.score(wrong_value, TRUTH)["correctness"] == pytest.approx(6 * 3 / 4 - 3)
    # Wrong name: nothing.
    assert toolrl.score(turn('{"name": "g", "parameters": {}}'), TRUTH)["correctness"] == -3
    # Spoilt format, right call.
    assert toolrl.score(TRUTH.replace("</think>\n", "</think> "), TRUTH) == {
        "format": 0.0,
        "correctness": 3.0,
        "score": 3.0,
    }
    # No call wanted: correctness is 0, whatever is said.
    answer = "<think> t </think>\n<response> hello </response>"
    assert toolrl.score(answer, answer) == {"format": 1.0, "correctness": 0.0, "score": 1.0}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["", "<tool_call>", "<tool_call>\n[[[[\n</tool_call>", TRUTH]))
def test_never_raises_and_stays_in_bounds(text, frame):
    for response in (text + frame, frame + text, turn(text), turn(CALL, text)):
        scores = toolrl.score(response, TRUTH)
        assert scores["format"] in (0.0, 1.0)
        assert -3.0 <= scores["correctness"] <= 3.0


@pytest.mark.parametrize(
    "line",
    [
        "NaN",
        "[]",
        '{"name": []}',
        '{"name": "f", "parameters": [1]}',
        '{"name": {}, "parameters": {}}',
        "1" * 5000,
        "[" * 100_000,
        "null",
    ],
)
def test_hostile_lines_score_the_minimum(line):
    assert toolrl.score(turn(line), TRUTH)["correctness"] == -3.0
