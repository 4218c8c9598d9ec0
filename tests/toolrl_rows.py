"""Made-up rows in the form of ToolRL's: its system prompt, dialogues of several turns, one to five tool calls."""

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.toolrl import make_row
from recipes.toolrl.bfcl.dialogue import system_prompt

CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Tokyo", "Quito")
TOOLS = [
    {
        "name": f"{subject} of a city",
        "description": f"Looks up the {subject.lower()} of a city, and returns a list of at most `limit` entries.",
        "parameters": {
            "type": "dict",
            "properties": {
                "city": {"description": "The name of the city", "type": "string", "default": ""},
                "limit": {"description": "The number of entries", "type": "int", "default": "10"},
            },
        },
    }
    for subject in ("Weather", "Concerts", "Museums", "Trains", "News", "Hotels")
]


def raw_row(seed: int) -> dict[str, str]:
    """A row of ToolRL's raw file: ``instruction``, ``input``, ``output``; every eighth answers without a tool call."""
    rng = random.Random(seed)
    tools = rng.sample(TOOLS, rng.randint(2, len(TOOLS)))
    history = "".join(f"<user> Tell me about {rng.choice(CITIES)}. </user>\n" for _ in range(rng.randint(1, 4)))
    if seed % 8 == 7:
        output = "<think> No tool is needed. </think>\n<response> You are welcome. </response>"
    else:
        calls = [
            json.dumps(
                {
                    "name": rng.choice(tools)["name"],
                    "parameters": {"city": rng.choice(CITIES), "limit": rng.randint(1, 9)},
                }
            )
            for _ in range(rng.randint(1, 5))
        ]
        output = "<think> I need a tool. </think>\n<tool_call>\n" + "\n".join(calls) + "\n</tool_call>"
    return {
        "instruction": system_prompt(tools),
        "input": f"**Dialogue Records History**\n{history}",
        "output": output,
    }


def write_original(path: Path, number: int) -> list[dict[str, Any]]:
    """Write rows as ToolRL's own parquet has them (pandas' metadata, keys in alphabetical order), and return them."""
    rows = []
    for index in range(number):
        row = make_row(*raw_row(index).values(), index, "test")
        rows.append(row | {"prompt": [dict(sorted(message.items())) for message in row["prompt"]]})
    pd.DataFrame(rows, dtype=object).to_parquet(path)
    return rows
