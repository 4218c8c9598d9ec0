"""ToolRL's format and correctness rewards, as the released code scores with its default switches."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saw.rewards import toolrl
from tests.conftest import GOLDEN

CALL = '{"name": "f", "parameters": {"a": 1, "b": "x"}}'
TRUTH = f"<think> t </think>\n<tool_call>\n{CALL}\n</tool_call>"


#: Environment variable of the released code -> the option that it sets.
SWITCHES = {
    "WITHLENGTH": {"length": True},
    "CORRECTMAX1": {"correctness_max": 1.0},
    "COARSEREWARD": {"coarse": True},
    "REFINEDREWARD": {"refined": True},
    "INTERMEDIATEREWARD": {"intermediate": True},
    "MAX1STEP30MAX3": {"late_correctness": True},
    "SCHEDULEREWARD": {"reward_schedule": True},
    "SCHEDULELENGTH": {"length_schedule": True},
}


def released(switches: dict[str, str]) -> toolrl.Options:
    """The options of a run of the released code; it turns a switch on by setting the variable to 1."""
    assert set(switches.values()) <= {"1"}
    return toolrl.Options(**{key: value for name in switches for key, value in SWITCHES[name].items()})


def turn(*calls: str) -> str:
    return "<think> t </think>\n<tool_call>\n" + "\n".join(calls) + "\n</tool_call>"


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "toolrl_rewards.json").read_text())


VARIANTS = [
    *("default", "with_length", "correct_max_1", "coarse", "refined", "intermediate", "schedule_reward_step_60"),
    *("max1_step30_max3_step_10", "max1_step30_max3_step_30", "schedule_length_step_50"),
]


def test_no_variant_is_left_out(golden):
    assert list(golden["variants"]) == VARIANTS
    assert len(golden["cases"]) > 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden(golden, variant):
    setting = golden["variants"][variant]
    options = released(setting["switches"])
    for case in golden["cases"]:
        ours = toolrl.score(case["response"], case["ground_truth"], options, setting["step"])
        reference = case["scores"][variant]
        expected = {name: reference[name] for name in ("format", "correctness", "length")}
        assert ours == pytest.approx({**expected, "score": reference["total"]}, abs=1e-9)
        for name, (low, high) in toolrl.bounds(options, setting["step"]).items():
            assert low - 1e-9 <= ours[name] <= high + 1e-9


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="lenght"):
        toolrl.score("", TRUTH, {"lenght": True})
    with pytest.raises(ValueError, match="correctness_max"):
        toolrl.score("", TRUTH, {"correctness_max": 0})


def test_schedules_beyond_the_golden_steps():
    ramp = {"reward_schedule": True}
    assert toolrl.bounds(ramp, 0) == {"format": (-2, 2), "correctness": (-2, 2)}
    assert toolrl.bounds(ramp, 150) == {"format": (-1, 1), "correctness": (-3, 3)}
    assert toolrl.bounds(ramp, 1000) == {"format": (-1, 1), "correctness": (-3, 3)}
    late = {"late_correctness": True}
    assert toolrl.bounds(late, 29) == {"format": (0, 1), "correctness": (-1, 1)}
    assert toolrl.bounds(late, 30) == {"format": (0, 0.5), "correctness": (-3, 3)}
    thought = "<think>" + " w" * 320 + "</think>"
    assert toolrl.length_reward(thought, toolrl.Options(length_schedule=True), step=105) == 0.5
    assert toolrl.length_reward(thought, toolrl.Options()) == round(320 / 512, 2)


def test_by_hand():
    assert toolrl.score(TRUTH, TRUTH) == {"format": 1.0, "correctness": 3.0, "length": 0.0, "score": 4.0}
    # Right name (1), both parameter names (1), one of two values (1): 3 of 1 + 1 + 2.
    wrong_value = turn('{"name": "f", "parameters": {"a": 2, "b": "x"}}')
    assert toolrl.score(wrong_value, TRUTH)["correctness"] == pytest.approx(6 * 3 / 4 - 3)
    # Wrong name: nothing.
    assert toolrl.score(turn('{"name": "g", "parameters": {}}'), TRUTH)["correctness"] == -3
    # Wrong format, right call.
    assert toolrl.score(TRUTH.replace("</think>\n", "</think> "), TRUTH) == {
        "format": 0.0,
        "correctness": 3.0,
        "length": 0.0,
        "score": 3.0,
    }
    # No call expected: correctness is 0 for every response.
    answer = "<think> t </think>\n<response> hello </response>"
    assert toolrl.score(answer, answer) == {"format": 1.0, "correctness": 0.0, "length": 0.0, "score": 1.0}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
variants = st.builds(
    toolrl.Options,
    length=st.booleans(),
    correctness_max=st.sampled_from([1.0, 3.0]),
    coarse=st.booleans(),
    refined=st.booleans(),
    intermediate=st.booleans(),
    late_correctness=st.booleans(),
    reward_schedule=st.booleans(),
    length_schedule=st.booleans(),
)


@settings(max_examples=200)
@given(
    st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")) | json_values.map(json.dumps),
    st.sampled_from(["", "<tool_call>", "</tool_call>", "<think>", TRUTH]),
    variants,
    st.integers(0, 200),
)
def test_never_raises_and_stays_in_bounds(text, frame, options, step):
    bounds = toolrl.bounds(options, step)
    for response in (text + frame, frame + text, turn(text), turn(CALL, text)):
        scores = toolrl.score(response, TRUTH, options, step)
        for name, (low, high) in bounds.items():
            assert low - 1e-9 <= scores[name] <= high + 1e-9


calls = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("abcdef"), "parameters": st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2))}
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda call: call["name"],
)


@settings(max_examples=100)
@given(calls, calls, st.randoms(use_true_random=False))
def test_order_of_calls_with_names_of_their_own_does_not_matter(true_calls, given_calls, random):
    def lines(items):
        return turn(*map(json.dumps, items))

    plain = toolrl.score(lines(given_calls), lines(true_calls))["correctness"]
    shuffled = [random.sample(items, len(items)) for items in (given_calls, true_calls)]
    assert toolrl.score(lines(shuffled[0]), lines(shuffled[1]))["correctness"] == pytest.approx(plain, abs=1e-12)


@settings(max_examples=100)
@given(calls, variants, st.integers(0, 200))
def test_an_identical_answer_scores_the_maximum(true_calls, options, step):
    answer = turn(*map(json.dumps, true_calls))
    scores = toolrl.score(answer, answer, options, step)
    bounds = toolrl.bounds(options, step)
    assert scores["format"] == bounds["format"][1]
    assert scores["correctness"] == bounds["correctness"][1]


@pytest.mark.parametrize(
    "line",
    [
        "NaN",
        "Infinity",
        "[]",
        "null",
        '{"name": []}',
        '{"name": "f"',
        '{"name": "f", "parameters": [1]}',
        '{"name": {}, "parameters": {}}',
        '{"name": "\ud800", "parameters": {}}',
        "1" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
        "x" * 1_000_000,
    ],
    ids=lambda line: line[:24],
)
def test_hostile_lines_score_the_minimum(line):
    assert toolrl.score(turn(line), TRUTH)["correctness"] == -3.0
    assert toolrl.score(turn(line), TRUTH, {"coarse": True, "length": True})["correctness"] == -3.0


def test_values_that_json_has_not_are_values_like_others():
    odd = CALL.replace("1,", "NaN,").replace('"x"', "Infinity")
    assert toolrl.score(turn(odd), TRUTH)["correctness"] == pytest.approx(6 * 2 / 4 - 3)
    twice = '{"name": "g", "name": "f", "parameters": {"a": 2, "a": 1, "b": "x"}}'  # the last of two equal keys counts
    assert toolrl.score(turn(twice), TRUTH)["correctness"] == 3.0


def test_a_broken_reference_is_an_error_of_the_data():
    with pytest.raises(ValueError, match="tool_call"):
        toolrl.score(TRUTH, "<think> t </think>\n<tool_call>\n" + CALL)


def released_block(turn: str) -> str:
    """The first block of tool calls, found by splitting as in the released parser."""
    assert "</tool_call>" in turn
    return turn.split("<tool_call>")[1].split("</tool_call>")[0].strip()


def test_golden_tags():
    """Tags out of order, doubled, missing or on one line score as in the released code."""
    golden = json.loads((GOLDEN / "toolrl_tags.json").read_text())
    assert len(golden["cases"]) > 50
    for name, setting in golden["settings"].items():
        options = released(setting["switches"])
        for case in golden["cases"]:
            ours = toolrl.score(case["response"], case["ground_truth"], options, setting["step"])
            reference = case["scores"][name]
            expected = {key: reference[key] for key in ("format", "correctness", "length")}
            assert ours == pytest.approx({**expected, "score": reference["total"]}, abs=1e-9), case["response"]


@pytest.mark.parametrize(
    ("response", "correctness"),
    [
        (f"<tool_call>\n{CALL}\n<tool_call>\nno json\n</tool_call>", 3.0),  # a second opening tag ends the block
        (f"</tool_call> <tool_call>\n{CALL}\n", 3.0),  # the closing tag may come before it
        (f"</tool_call><tool_call>{CALL}<tool_call>", 3.0),
        (f"<tool_call>{CALL}</tool_call>", 3.0),  # on one line
        (f"<tool_call>\n{CALL}\n</tool_call>\n</tool_call>", 3.0),
        (f"<tool_call></tool_call>\n<tool_call>\n{CALL}\n</tool_call>", -3.0),  # the first block counts, and is empty
        (f"<tool_call>\n<tool_call>\n{CALL}\n</tool_call>", -3.0),
        (f"<think> <tool_call> </think>\n<tool_call>\n{CALL}\n</tool_call>", -3.0),
        (f"<tool_call>\n{CALL}\n<tool_call>", -3.0),  # no closing tag anywhere
        (f"{CALL}\n</tool_call>", -3.0),  # no opening one
        ("</tool_call><tool_call>", -3.0),
    ],
)
def test_where_the_block_of_tool_calls_ends(response, correctness):
    """Tags in any order: the first block ends at the next tag of either kind, and a closing tag occurs anywhere."""
    assert toolrl.score(response, TRUTH)["correctness"] == correctness


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", "\n", CALL, '{"name": "g", "parameters": {}}', " ", "<think>"]),
        max_size=12,
    )
)
def test_any_order_of_tags_parses_as_in_the_released_code(pieces):
    """Tags in any order, against an independent implementation of the released parser."""
    turn = "".join(pieces)
    try:
        expected = [json.loads(line) for line in released_block(turn).split("\n")]
    except (AssertionError, IndexError, ValueError):
        with pytest.raises(ValueError, match=r"tool_call|JSON|Expecting|Extra data"):
            toolrl.parse_tool_calls(turn)
    else:
        assert toolrl.parse_tool_calls(turn) == expected


CALLS = [{"name": "f", "parameters": {"a": 1, "b": "x"}}]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (CALLS[0], "ground_truth is of type dict"),
        (CALLS, "ground_truth is of type list"),
        (np.array([CALL], dtype=object), "ground_truth is of type ndarray"),
        (np.array(TRUTH), "ground_truth is of type ndarray"),
        (None, "ground_truth is of type NoneType"),
        (float("nan"), "ground_truth is of type float"),
        (TRUTH.encode(), "ground_truth is of type bytes"),
        ([TRUTH], "ground_truth is of type list"),  # a list of turns: "in" would find no tag, and raise nothing
        ({"<tool_call>": TRUTH, "<response>": ""}, "ground_truth is of type dict"),  # nor here
        (json.dumps(CALLS), "ground_truth has none of the tags"),
        (CALL, "ground_truth has none of the tags"),
        ("The weather is fine.", "ground_truth has none of the tags"),
        ("", "ground_truth has none of the tags"),
        ("</think></tool_call>", "ground_truth has none of the tags"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_reference_that_is_no_text_with_tags_is_an_error(reference, message):
    """A reference that the reward cannot read is an error; otherwise every answer would get the same reward."""
    for reward in (toolrl.score, toolrl.format_reward, toolrl.correctness_reward):
        with pytest.raises(ValueError, match=message):
            reward(TRUTH, reference)


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "3", "null", '{"name": "f"}', '{"parameters": {}}', '{"name": 3, "parameters": {}}'),
        *('{"name": "f", "parameters": [1]}', '{"name": "f", "parameters": null}', f"[{CALL}]", "[" * 100_000),
        '{"name": "f", "arguments": {"a": 1}}',
    ],
    ids=lambda line: line[:40],
)
def test_a_reference_whose_calls_no_answer_can_match_is_an_error(line):
    """References that parse, but give every answer the minimum."""
    for options in ({}, {"coarse": True}, {"intermediate": True}):
        with pytest.raises(ValueError, match=r"tool calls? of ground_truth"):
            toolrl.score(TRUTH, turn(CALL, line), options)


def test_a_reference_of_a_thought_alone_is_one():
    thought = "<think> t </think>"
    assert toolrl.score(thought, thought) == {"format": 1.0, "correctness": 0.0, "length": 0.0, "score": 1.0}
