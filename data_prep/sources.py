"""Reads rows from a local .json, .jsonl or .parquet, one at a time; errors name the file and the row."""

from __future__ import annotations

import json
import logging
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from saw.machine import hub

logger = logging.getLogger(__name__)


class BadSource(ValueError):
    """A source that cannot be used; the message names the file, the row if there is one, and the fault."""


def read_json(path: Path) -> Iterator[Any]:
    """Rows of a JSON array.

    Raises:
        BadSource: if the file is not a JSON array, or is cut off.
    """
    rows = 0
    with path.open("rb") as file:
        try:
            for start, kind, _ in ijson.parse(file, use_float=True):
                if (start, kind) != ("", "start_array"):
                    raise BadSource(f"{path} is not a JSON array: it begins with {kind.removeprefix('start_')}")
                break
            file.seek(0)
            for row in ijson.items(file, "item", use_float=True):
                yield row
                rows += 1
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise BadSource(f"{path} is not a complete JSON array, after {rows} rows: {error}") from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """Rows of a file with one JSON value per line; empty lines are skipped.

    Raises:
        BadSource: at the first line that is not valid JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadSource(f"{path}, line {number}: not valid JSON: {error}") from error


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, with one batch in memory at a time.

    Raises:
        BadSource: if the file is not a parquet file, is cut off or cannot be read.
    """
    done = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            for place in range(batch.num_rows):
                (row,) = batch.slice(place, 1).to_pylist()
                yield row
                done += 1
    except UnicodeDecodeError as error:
        raise BadSource(f"{path}: row {done}: a text is not UTF-8: {error}") from error
    except (pa.ArrowException, OSError) as error:
        raise BadSource(f"{path} is not a complete parquet file, after {done} rows: {error}") from error


def fault_of_text(value: Any) -> str:
    """Describe why a value is not a text; empty if it is one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is absent, empty or null; expected a text"
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "is a list of messages; expected a text"
    if not isinstance(value, str):
        return f"is {reprlib.repr(value)} ({type(value).__name__}); expected a text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains half of a surrogate pair, which is not valid text"
    return ""


def fault_of_messages(value: Any) -> str:
    """Describe why a value is not a list of messages; empty if it is one."""
    if isinstance(value, str):
        return "is a text; expected a list of messages with role and content"
    if not isinstance(value, list) or not value:
        return f"is {reprlib.repr(value)}; expected a list of messages with role and content"
    for place, turn in enumerate(value):
        if not isinstance(turn, dict):
            return f"has {reprlib.repr(turn)} as message {place}; expected role and content"
        for key in ("role", "content"):
            if fault := fault_of_text(turn.get(key)):
                return f"has a message {place} whose {key} {fault}"
    return ""


def look_for_the_hub(name: str) -> str:
    """If a name is on the Hub and the Hub does not answer, use its cache only, instead of waiting for each file.

    Returns:
        str: for an error message: that the Hub does not answer, and why; empty if it does.
    """
    fault = hub.unreachable([name])
    if fault is None:
        return ""
    logger.warning("the Hub does not answer (%s): only what is in its cache is used", fault)
    return f"; the Hub does not answer ({fault})"


def token_counter(name: str) -> Callable[[list[dict[str, str]]], int]:
    """A function that counts a prompt's tokens, including those of the chat template.

    Args:
        name (str): a tokenizer's folder, or its name on the Hub.

    Raises:
        BadSource: if it cannot be used, or has no chat template.
    """
    from transformers import AutoTokenizer

    fault = look_for_the_hub(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        tokenizer.get_chat_template()
    except (OSError, ValueError) as error:
        raise BadSource(f"--tokenizer {name} cannot be used: {error}{fault}") from error
    return lambda messages: len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
