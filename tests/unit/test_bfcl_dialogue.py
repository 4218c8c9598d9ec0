"""BFCL items in ToolRL's form: prompts and decoding, without BFCL's package."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.toolrl.bfcl.dialogue import (
    AFTER_RESULT,
    MULTI_TURN,
    SINGLE_TURN,
    as_python,
    system_prompt,
    tool_calls,
    user_message,
)
from recipes.toolrl.evaluate import is_format_correct


def test_system_prompt_is_that_of_the_training_rows(shared):
    rows = json.loads((shared / "data" / "toolrl" / "rlla_sft.json").read_text())
    for row in rows:
        tools = re.findall(r"^\d+\. Name: (.*)\nDescription: ((?:.|\n)*?)\nParameters: (.*)$", row["instruction"], re.M)
        assert tools
        functions = [
            {"name": name, "description": description, "parameters": {"type": "dict", "properties": json.loads(text)}}
            for name, description, text in tools
        ]
        assert system_prompt(functions) == row["instruction"].rstrip("\n")


def test_a_tool_without_parameters_and_with_braces_in_its_text():
    text = system_prompt([{"name": "f", "description": "about {tools}", "parameters": {"type": "dict"}}])
    assert "1. Name: f\nDescription: about {tools}\nParameters: {}\n" in text


def test_single_turn_message():
    messages = [{"role": "system", "content": "left out"}, {"role": "user", "content": " Hello. "}]
    expected = f"**Dialogue Records History**\n<user> Hello.\n{SINGLE_TURN} </user>"
    assert user_message(messages, multi_turn=False) == expected


def test_multi_turn_message_ends_with_the_reminder_after_a_result():
    messages = [
        {"role": "user", "content": "Sort it."},
        {"role": "assistant", "content": "<think> a </think>\n<tool_call>\n{}\n</tool_call>\n"},
        {"role": "tool", "name": "sort(file='a')", "content": "{'sorted': 'x'}"},
    ]
    head = (
        f"**Dialogue Records History**\n<user> Sort it.\n{MULTI_TURN} </user>\n\n"
        "<think> a </think>\n<tool_call>\n{}\n</tool_call>\n"
        "<obs> You have made the tool call sort(file='a'). Execution returns: {'sorted': 'x'} </obs>"
    )
    assert user_message(messages, multi_turn=True) == f"{head}\n\n<user> {AFTER_RESULT} </user>"
    more = [*messages, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "Thanks."}]
    assert user_message(more, multi_turn=True) == f"{head}\n\nDone.\n<user> Thanks.\n{MULTI_TURN} </user>"


CALL = '{"name": "f", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        ("no call", []),
        (f"<think> x </think>\n<tool_call>\n{CALL}\n</tool_call>", [("f", {"a": 1})]),
        (f"<tool_call>\n{CALL}\nno json\n{CALL}\n</tool_call>", [("f", {"a": 1})] * 2),
        (f"<think> <tool_call> </think>\n<tool_call>\n{CALL}", [("f", {"a": 1})]),  # after the last tag, never closed
        ('<tool_call>\n{"name": " None", "parameters": {}}', []),
        ('<tool_call>\n{"name": 3, "parameters": {}}\n{"name": "f"}\n{"name": "f", "parameters": []}\n[1]\n3', []),
        ("<tool_call>\n" + "[" * 100_000, []),
        ('<tool_call>\n{"name": "f", "parameters": {"a": NaN}}\ud800', []),
    ],
)
def test_tool_calls(reply, calls):
    assert tool_calls(reply) == calls


@given(st.text())
def test_decoding_never_raises(text):
    tool_calls("<tool_call>" + text)


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
