"""Converts a BFCL item into a prompt in ToolRL's format, and a model's reply into tool calls.

The format is that of the training rows: their system prompt with the tools listed in it (``system_prompt.txt``), and
one user message with the whole dialogue. Building the prompt and parsing the reply follow ToolRL's own handler; the
three sentences below paraphrase its sentences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SYSTEM_PROMPT = Path(__file__).with_name("system_prompt.txt").read_text().rstrip("\n")

#: Follows the user's words, also in multi-turn items: the stock package does not tell ToolRL's handler the kind of an
#: item, so its multi-turn sentence is never used.
SINGLE_TURN = (
    "If none of the tools fits, or a required parameter is missing, tell me so in your response without any tool call, "
    "or call a tool named 'None'. Otherwise use one or more tool calls to complete the task in this turn."
)
#: Follows the user's words in a multi-turn item with ``--multi-turn-sentence``.
MULTI_TURN = (
    "Use the tool calls that are needed to complete the task. You may call tools over several rounds, so that you can "
    "try and correct yourself: plan how to reach the goal step by step, and begin. If no tool applies, or a required "
    "parameter is missing, say so directly in your response without any tool call."
)
#: Follows the result of the last tool call.
AFTER_RESULT = (
    "If the task is done, or cannot be done, respond directly without further tool calls. If a tool call failed or "
    "something is left to do, go on with the tool calls that are needed until it is done: consider from the results "
    "whether a tool was misunderstood or badly chosen, and which step is missing."
)


def system_prompt(functions: Sequence[dict[str, Any]]) -> str:
    """The training rows' system prompt, with the tools of a BFCL item.

    Args:
        functions (Sequence[dict]): BFCL's ``name``, ``description`` and ``parameters`` of each tool.
    """
    tools = "\n".join(
        f"{number}. Name: {function['name']}\nDescription: {function['description']}\n"
        f"Parameters: {json.dumps(function['parameters'].get('properties', {}))}"
        for number, function in enumerate(functions, start=1)
    )
    return _SYSTEM_PROMPT.replace("{tools}", tools, 1)


def user_message(messages: Sequence[dict[str, str]], sentence: str = SINGLE_TURN) -> str:
    """The dialogue so far as the one user message of the training rows.

    Args:
        messages (Sequence[dict]): ``role`` (user, assistant, tool; system messages are left out, as in ToolRL's
            handler) and ``content`` of each; a tool's also has its ``name``.
        sentence (str): added after the user's words.
    """
    parts = ["**Dialogue Records History**\n"]
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "user":
            parts.append(f"<user> {content}\n{sentence} </user>\n")
        elif message["role"] == "assistant":
            parts.append(f"\n{content}\n")
        elif message["role"] == "tool":
            call = message["name"].strip()
            parts.append(f"<obs> You have made the tool call {call}. Execution returns: {content} </obs>\n")
    if messages and messages[-1]["role"] == "tool":
        parts.append(f"\n<user> {AFTER_RESULT} </user>\n")
    return "".join(parts).strip()


def tool_calls(reply: str) -> list[tuple[str, Any]]:
    """Name and parameters of each tool call of a reply, for the syntax checker. Never raises.

    Skips lines that are not calls, and calls of 'None', with which a model says that no tool fits.
    """
    return [
        (call["name"], call["parameters"])
        for call in _objects(reply)
        if isinstance(call.get("name"), str) and "parameters" in call and not _is_none(call["name"])
    ]


def executable_calls(reply: str) -> list[str]:
    """The tool calls of a reply as Python source, for BFCL's simulated tools.

    As in ToolRL's handler, a call without parameters runs as ``name()``, and one without a name does not parse.

    Raises:
        ValueError: if the name is not a string, or the parameters are not a dictionary. BFCL then runs none of the
            reply's calls and continues with the next turn.
    """
    sources = []
    for call in _objects(reply):
        name, parameters = call.get("name", ""), call.get("parameters", {})
        if not isinstance(name, str) or not isinstance(parameters, dict):
            raise ValueError(f"the call {str(call)[:200]} has no name or no dictionary of parameters")
        if not _is_none(name):
            sources.append(as_python(name, parameters))
    return sources


def _objects(reply: str) -> list[dict[str, Any]]:
    """The JSON objects, one per line, between the last ``<tool_call>`` and the next ``</tool_call>``, if any."""
    _, opening, rest = reply.rpartition("<tool_call>")
    found = []
    for line in rest.partition("</tool_call>")[0].strip().split("\n") if opening else []:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _is_none(name: str) -> bool:
    return name.strip().lower() == "none"


def as_python(name: str, parameters: dict[str, Any]) -> str:
    """A call as Python source."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in parameters.items())})"
