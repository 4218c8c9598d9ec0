"""A small made-up tool-calling data set in ToolRL's row format, for the quickstart and the tests.

    python -m data_prep.toy_toolrl --out runs/quickstart/data
    python -m data_prep.toy_toolrl --raw runs/rehearsal/toolrl/raw.json   # for data_prep.toolrl

Rows have the schema of ToolRL's RL split in verl: ``data_source`` (rlla), ``prompt`` (system and user turn),
``ability``, ``reward_model.ground_truth`` and ``extra_info``. There are only a few made-up tools, words and questions,
so that a model with fewer than a million parameters can learn them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from data_prep.toolrl import make_row

#: Tool name -> description, parameter, values of the parameter, and ways to ask for it.
TOOLS: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "get_weather": (
        "Weather of a city.",
        "city",
        ("Paris", "Oslo", "Lima", "Cairo", "Tokyo", "Quito"),
        ("What is the weather in {}?", "Is it raining in {} now?"),
    ),
    "play_music": (
        "Play a kind of music.",
        "genre",
        ("jazz", "rock", "folk", "soul", "blues", "opera"),
        ("Please play some {}.", "I want to hear {} music."),
    ),
    "set_timer": (
        "Start a timer.",
        "minutes",
        ("5", "10", "15", "20", "30", "45"),
        ("Set a timer for {} minutes.", "Tell me when {} minutes are over."),
    ),
}
GREETINGS = ("Hello!", "Thank you.", "Good morning!", "That is all.")

TOOL_THOUGHT = "I should use the appropriate tool with proper parameters to respond to the user's need."
RESPONSE_THOUGHT = "I should directly respond to the user's need."
SYSTEM_PROMPT = "**Available Tools**\n" + "\n".join(
    f'{i}. Name: {name}\nDescription: {description}\nParameters: {{"{parameter}": {{}}}}'
    for i, (name, (description, parameter, _, _)) in enumerate(TOOLS.items(), start=1)
)


def tool_turn(name: str, value: str) -> str:
    """The assistant turn that calls a tool with its one parameter."""
    call = json.dumps({"name": name, "parameters": {TOOLS[name][1]: value}})
    return f"<think> {TOOL_THOUGHT} </think>\n<tool_call>\n{call}\n</tool_call>"


def response_turn() -> str:
    """The assistant turn that answers a greeting."""
    return f"<think> {RESPONSE_THOUGHT} </think>\n<response> You are welcome. </response>"


def make_rows(number: int, split: str, seed: int, start: int = 0) -> list[dict[str, Any]]:
    """Make rows: of every eight, seven ask for a tool and the last is a greeting.

    Args:
        number (int): number of rows.
        split (str): written into ``extra_info``.
        seed (int): seed for the choice of tools, values and wording.
        start (int): index of the first row.

    Returns:
        list[dict[str, Any]]: rows in verl's schema.
    """
    rng = random.Random(seed)
    rows = []
    for index in range(start, start + number):
        if index % 8 == 7:
            question, output = rng.choice(GREETINGS), response_turn()
        else:
            name = rng.choice(list(TOOLS))
            _, _, values, wordings = TOOLS[name]
            value = rng.choice(values)
            question, output = rng.choice(wordings).format(value), tool_turn(name, value)
        rows.append(
            make_row(SYSTEM_PROMPT, f"**Dialogue Records History**\n<user> {question} </user>", output, index, split)
        )
    return rows


def write_splits(folder: Path, train_rows: int = 512, test_rows: int = 64, seed: int = 0) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``test.parquet``; the test rows are drawn with another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / "train.parquet", folder / "test.parquet"
    Dataset.from_list(make_rows(train_rows, "train", seed)).to_parquet(train)
    Dataset.from_list(make_rows(test_rows, "test", seed + 1, start=train_rows)).to_parquet(test)
    return train, test


def write_raw(path: Path, rows: int, seed: int = 0) -> None:
    """Write rows in the format of ToolRL's raw file: a JSON array of ``instruction``, ``input`` and ``output``."""
    keys = ("instruction", "input", "output")
    raw = [{key: row["extra_info"][key] for key in keys} for row in make_rows(rows, "raw", seed)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder for train.parquet and test.parquet")
    where.add_argument("--raw", type=Path, help="a JSON file for --train-rows rows in ToolRL's raw format")
    parser.add_argument("--train-rows", type=int, default=512)
    parser.add_argument("--test-rows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    for name in ("train_rows", "test_rows"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected at least 1")
    if arguments.raw:
        write_raw(arguments.raw, arguments.train_rows, arguments.seed)
        return
    write_splits(arguments.out, arguments.train_rows, arguments.test_rows, arguments.seed)


if __name__ == "__main__":
    main()
