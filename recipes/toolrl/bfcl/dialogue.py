"""A BFCL item as a prompt of ToolRL's form, and a model's reply as tool calls.

The form is that of the training rows: their system prompt with the tools listed in it (``system_prompt.txt``), and one
user message that holds the whole dialogue. How a BFCL item is put into it follows ToolRL's own handler; the three
sentences below have its meaning in our words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SYSTEM_PROMPT = Path(__file__).with_name("system_prompt.txt").read_text().rstrip("\n")

#: Follows the user's words in a single-turn item.
SINGLE_TURN = (
    "If none of the tools fits, or a required parameter is missing, tell me so in your response without any tool call, "
    "or call a tool named 'None'. Otherwise use one or more tool calls to complete the task in this turn."
)
#: Follows the user's words in a multi-turn item.
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


def user_message(messages: Sequence[dict[str, str]], multi_turn: bool) -> str:
    """The dialogue so far as the one user message of the training rows.

    Args:
        messages (Sequence[dict]): ``role`` (user, assistant, tool; system messages are left out, as in ToolRL's
            handler) and ``content`` of each; a tool's also has its ``name``.
        multi_turn (bool): which sentence follows the user's words.
    """
    parts = ["**Dialogue Records History**\n"]
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "user":
            parts.append(f"<user> {content}\n{MULTI_TURN if multi_turn else SINGLE_TURN} </user>\n")
        elif message["role"] == "assistant":
            parts.append(f"\n{content}\n")
        elif message["role"] == "tool":
            call = message["name"].strip()
            parts.append(f"<obs> You have made the tool call {call}. Execution returns: {content} </obs>\n")
    if messages and messages[-1]["role"] == "tool":
        parts.append(f"\n<user> {AFTER_RESULT} </user>\n")
    return "".join(parts).strip()


def tool_calls(reply: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and parameters of each tool call of a reply.

    One JSON object a line after the last ``<tool_call>``. A line that is no call is skipped, and so is a call of
    'None', which is how a model says that no tool fits. Never raises.
    """
    _, opening, block = reply.rpartition("<tool_call>")
    if not opening:
        return []
    calls = []
    for line in block.split("\n"):
        try:
            call = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(call, dict):
            continue
        name, parameters = call.get("name"), call.get("parameters")
        if isinstance(name, str) and isinstance(parameters, dict) and name.strip().lower() != "none":
            calls.append((name, parameters))
    return calls


def as_python(name: str, parameters: dict[str, Any]) -> str:
    """A call as Python source, for BFCL's simulated tools."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in parameters.items())})"
