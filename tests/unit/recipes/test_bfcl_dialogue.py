"""BFCL items in ToolRL's form: prompts and decoding, without BFCL's package."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.toolrl.bfcl.dialogue import (
    AFTER_RESULT,
    MULTI_TURN,
    SINGLE_TURN,
    as_python,
    executable_calls,
    system_prompt,
    tool_calls,
    user_message,
)
from recipes.toolrl.evaluate import is_format_correct
from tests.conftest import GOLDEN


def test_the_single_turn_sentence_is_the_default_in_several_turns_too():
    """As the released handler with the stock package, which never tells it the kind of item."""
    messages = [
        {"role": "user", "content": "Sort it."},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks."},
    ]
    text = user_message(messages)
    assert text.count(SINGLE_TURN) == 2
    assert MULTI_TURN not in text


#: Of the system prompt that all of ToolRL's rows share, with the list of tools cut out (tests/golden/README.md).
SHA_OF_TOOLRLS_PROMPT = "328a1927f19a930633cf30097aa1118d7b10d254080d43bf2f3ec664a5894ece"


def test_system_prompt_is_that_of_the_training_rows():
    tools = [
        {
            "name": "f",
            "description": "One.\nTwo.",
            "parameters": {"type": "dict", "properties": {"a": {"type": "int"}}},
        },
        {"name": "G H", "description": "", "parameters": {"type": "dict", "properties": {}}},
    ]
    listed = (
        '1. Name: f\nDescription: One.\nTwo.\nParameters: {"a": {"type": "int"}}\n'
        "2. Name: G H\nDescription: \nParameters: {}"
    )
    before, found, after = system_prompt(tools).partition(listed)
    assert found
    assert hashlib.sha256(f"{before}{{tools}}{after}".encode()).hexdigest() == SHA_OF_TOOLRLS_PROMPT


def test_a_tool_without_parameters_and_with_braces_in_its_text():
    text = system_prompt([{"name": "f", "description": "about {tools}", "parameters": {"type": "dict"}}])
    assert "1. Name: f\nDescription: about {tools}\nParameters: {}\n" in text


def test_single_turn_message():
    messages = [{"role": "system", "content": "left out"}, {"role": "user", "content": " Hello. "}]
    expected = f"**Dialogue Records History**\n<user> Hello.\n{SINGLE_TURN} </user>"
    assert user_message(messages) == expected


@pytest.mark.parametrize("sentence", [SINGLE_TURN, MULTI_TURN])
def test_message_of_several_turns_ends_with_the_reminder_after_a_result(sentence):
    messages = [
        {"role": "user", "content": "Sort it."},
        {"role": "assistant", "content": "<think> a </think>\n<tool_call>\n{}\n</tool_call>\n"},
        {"role": "tool", "name": "sort(file='a')", "content": "{'sorted': 'x'}"},
    ]
    head = (
        f"**Dialogue Records History**\n<user> Sort it.\n{sentence} </user>\n\n"
        "<think> a </think>\n<tool_call>\n{}\n</tool_call>\n"
        "<obs> You have made the tool call sort(file='a'). Execution returns: {'sorted': 'x'} </obs>"
    )
    assert user_message(messages, sentence) == f"{head}\n\n<user> {AFTER_RESULT} </user>"
    more = [*messages, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "Thanks."}]
    assert user_message(more, sentence) == f"{head}\n\nDone.\n<user> Thanks.\n{sentence} </user>"


CALL = '{"name": "f", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        ("no call", []),
        (f"<think> x </think>\n<tool_call>\n{CALL}\n</tool_call>", [("f", {"a": 1})]),
        (f"<tool_call>\n{CALL}\nno json\n{CALL}\n</tool_call>", [("f", {"a": 1})] * 2),
        (f"<think> <tool_call> </think>\n<tool_call>\n{CALL}", [("f", {"a": 1})]),  # after the last tag, never closed
        ('<tool_call>\n{"name": " None", "parameters": {}}', []),
        ('<tool_call>\n{"name": 3, "parameters": {}}\n{"name": "f"}\n{"parameters": {}}\n[1]\n3', []),
        ('<tool_call>\n{"name": "f", "parameters": []}', [("f", [])]),  # the checker refuses it, with the whole reply
        ("<tool_call>\n" + "[" * 100_000, []),
        ('<tool_call>\n{"name": "f", "parameters": {"a": NaN}}\ud800', []),
    ],
)
def test_tool_calls(reply, calls):
    assert tool_calls(reply) == calls


def test_golden_decoding():
    """Replies are read as ToolRL's own handler reads them, for both checkers."""
    cases = json.loads((GOLDEN / "bfcl_decode.json").read_text())["cases"]
    assert len(cases) > 50
    for case in cases:
        syntax = [{name: parameters} for name, parameters in tool_calls(case["response"])]
        assert syntax == case["decode_ast"], case["response"]
        if isinstance(case["decode_execute"], dict):
            with pytest.raises(ValueError, match="no dictionary of parameters"):
                executable_calls(case["response"])
        else:
            assert executable_calls(case["response"]) == case["decode_execute"], case["response"]


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        (f"<tool_call>\n{CALL}</tool_call>", ["f(a=1)"]),  # on the last line of the calls
        (f"<tool_call>{CALL}</tool_call>", ["f(a=1)"]),
        (f"<tool_call>\n{CALL}\n</tool_call>\n{CALL}", ["f(a=1)"]),  # what follows is no call
        (f"<tool_call>\n{CALL}\n</tool_call>\n{CALL}\n</tool_call>", ["f(a=1)"]),  # the next closing tag, not the last
        (f"<tool_call>\n{CALL} </tool_call> {CALL}\n", ["f(a=1)"]),
        (f"</tool_call>\n{CALL}\n<tool_call>\n{CALL}", ["f(a=1)"]),
        (f"{CALL}\n</tool_call>", []),
        (f"<tool_call>\r\n{CALL}\r\n</tool_call>", ["f(a=1)"]),
        (f"<tool_call>\n\u00a0{CALL}\u3000\n</tool_call>", ["f(a=1)"]),  # the block is stripped as str.strip does
        (f"<tool_call>\x0c{CALL}\x85</tool_call>", ["f(a=1)"]),
        (f"<tool_call>\n{CALL}\n\u00a0{CALL}\n{CALL}\n</tool_call>", ["f(a=1)"] * 2),  # but not each line
    ],
)
def test_decoding_cuts_at_the_closing_tag(reply, calls):
    """Where the calls end, wherever the tags are; the same for both checkers."""
    assert executable_calls(reply) == calls
    assert tool_calls(reply) == [("f", {"a": 1})] * len(calls)


@pytest.mark.parametrize(
    ("line", "sources"),
    [
        ('{"name": "f"}', ["f()"]),
        ('{"name": "f", "parameters": {}}', ["f()"]),
        ('{"parameters": {"a": 1}}', ["(a=1)"]),
        ('{"name": " nOnE ", "parameters": {}}', []),
        ('{"name": "None"}', []),
        ("[1]", []),
        ("null", []),
    ],
)
def test_a_call_without_parameters_runs(line, sources):
    assert executable_calls(f"<tool_call>\n{line}\n</tool_call>") == sources


@pytest.mark.parametrize(
    "line", ['{"name": "f", "parameters": null}', '{"name": "f", "parameters": "x"}', '{"name": 3}']
)
def test_a_call_that_cannot_run_is_a_clear_error(line):
    with pytest.raises(ValueError, match="no name or no dictionary of parameters"):
        executable_calls(f"<tool_call>\n{CALL}\n{line}\n</tool_call>")


@given(st.text() | st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "\n", CALL, "[]"])).map("".join))
def test_decoding_never_raises_on_text(text):
    assert tool_calls("<tool_call>" + text) is not None
    assert executable_calls("<tool_call>" + text) is not None


def test_as_python():
    assert as_python("mv", {"source": "it's", "n": [1, None], "b": True}) == 'mv(source="it\'s", n=[1, None], b=True)'


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        (f"<think> a </think>\n<tool_call>\n{CALL}\n</tool_call>", True),
        ("<think> a </think>\n<response> b </response>", True),
        (f"<think> a </think>\n<tool_call>\n{CALL}\n</tool_call>\n<response> b </response>", True),
        ("<think> a </think>", False),  # neither call nor response
        (f"<tool_call>\n{CALL}\n</tool_call>", False),
        ("Error during inference: too long", False),
    ],
)
def test_format_correct(reply, correct):
    assert is_format_correct(reply) == correct
