"""Reddit posts and their summaries in verl's schema, for the summarisation experiment.

    python -m data_prep.tldr --out data/tldr                              # from the Hub
    python -m data_prep.tldr --source posts.jsonl --out data/tldr         # a local .json, .jsonl or .parquet

Draws 2,560 training rows and 256 evaluation rows by seed, disjoint and without repeated posts. A post whose prompt is
longer than ``--max-prompt-tokens`` is skipped and counted, never cut. ``ids.json`` lists the drawn rows: pass it with
``--ids`` to get the same rows again, even if the order of the source has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from datasets.utils.logging import disable_progress_bar

from data_prep.sources import (
    BadSource,
    fault_of_text,
    look_for_the_hub,
    read_json,
    read_jsonl,
    read_parquet,
    token_counter,
)

logger = logging.getLogger(__name__)

#: The Hub's data set, our assumption (docs/papers.md): name, revision, and the columns of post and summary.
HUB, REVISION, POST, SUMMARY = "trl-lib/tldr", "main", "prompt", "completion"
TRAIN_ROWS, TEST_ROWS = 2560, 256
INSTRUCTION = "Summarize the following Reddit post in one or two sentences. Reply with the summary only."


def load(source: str | None, name: str, revision: str) -> Iterable[Any]:
    """The rows of a file, or of the Hub's data set.

    Raises:
        BadSource: if the source cannot be opened; a fault inside a file is raised when its row is read.
    """
    if source is None:
        fault = look_for_the_hub(name)
        try:
            return load_dataset(name, revision=revision, split="train")
        except (OSError, ConnectionError, ValueError, DatasetsError) as error:
            where = _where(source, name, revision)
            why = f"{error}{fault}"
            raise BadSource(f"{where} could not be read ({why}); without a network, use --source FILE") from error
    path = Path(source)
    if not path.is_file():
        raise BadSource(f"{source}: there is no such file")
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix not in (".json", ".jsonl"):
        raise BadSource(f"{source}: expected a .json, .jsonl or .parquet")
    with path.open("rb") as file:
        is_array = file.read(1 << 16).lstrip().startswith(b"[")
    return read_json(path) if is_array else read_jsonl(path)


def _where(source: str | None, name: str, revision: str) -> str:
    return source or f"the Hub's {name} at revision {revision}"


def read(rows: Iterable[Any], post: str, summary: str, where: str) -> Iterator[tuple[str, str, str]]:
    """Id, post and summary of each row; skips repeated posts and rows with an empty text (null or white space).

    Args:
        rows (Iterable[Any]): one object per row.
        post (str): the post's column.
        summary (str): the summary's column.
        where (str): the source, for error messages.

    Raises:
        BadSource: at the first row that lacks a column, or in which a column is not text.
    """
    seen = set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadSource(f"{where}: row {number} is {type(row).__name__}; expected an object with columns")
        text, reference = (_text(row, column, f"{where}: row {number}") for column in (post, summary))
        text = text.removesuffix("TL;DR:").strip()
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        if text and reference and name not in seen:
            seen.add(name)
            yield name, text, reference


def _text(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise BadSource(f"{where}: there is no column {column!r}; there are {', '.join(map(str, row))}")
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if fault := fault_of_text(value):
        raise BadSource(f"{where}: {column} {fault}")
    return value.strip()


def _read_ids(path: Path) -> dict[str, list[str]]:
    """The rows listed in an ``ids.json``.

    Raises:
        BadSource: if the file is not valid, or lists a row twice.
    """
    try:
        ids = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadSource(f"--ids {path} could not be read: {error}") from error
    for split in ("train", "test"):
        names = ids.get(split) if isinstance(ids, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadSource(f"--ids {path}: expected a list of ids under {split!r}, as data_prep.tldr writes it")
    both = [*ids["train"], *ids["test"]]
    if twice := next((name for name in both if both.count(name) > 1), None):
        raise BadSource(f"--ids {path} lists {twice} twice; training and evaluation rows must be disjoint")
    return ids


def prompt(post: str) -> list[dict[str, str]]:
    """The prompt for the model."""
    return [{"role": "user", "content": f"{INSTRUCTION}\n\n{post}"}]


def make_row(name: str, post: str, summary: str, index: int, split: str, tokens: int) -> dict[str, Any]:
    """One row in verl's schema; the judge finds the post in ``extra_info``."""
    return {
        "data_source": "tldr",
        "prompt": prompt(post),
        "ability": "summarisation",
        "reward_model": {"ground_truth": summary, "style": "rule"},
        "extra_info": {
            "index": index,
            "split": split,
            "id": name,
            "post": post,
            "prompt_tokens": tokens,
            "reference_words": len(summary.split()),
        },
    }


def prepare(
    out: Path,
    *,
    source: str | None,
    tokenizer: str,
    hub: tuple[str, str] = (HUB, REVISION),
    columns: tuple[str, str] = (POST, SUMMARY),
    sizes: tuple[int, int] = (TRAIN_ROWS, TEST_ROWS),
    max_prompt_tokens: int = 2048,
    seed: int = 0,
    ids: Path | None = None,
) -> dict[str, Any]:
    """Read, check, draw and write the rows.

    Args:
        out (Path): folder for ``train.parquet``, ``test.parquet``, ``ids.json`` and ``report.json``.
        source (str | None): a local file; None uses the Hub's data set.
        tokenizer (str): the model's tokenizer, to measure the prompts.
        hub (tuple[str, str]): name and revision of the Hub's data set.
        columns (tuple[str, str]): columns of the post and of the summary.
        sizes (tuple[int, int]): number of training and evaluation rows.
        max_prompt_tokens (int): longer prompts are left out.
        seed (int): seed of the draw.
        ids (Path | None): an ``ids.json``, to use exactly these rows.

    Returns:
        dict[str, Any]: the report.

    Raises:
        BadSource: if the source cannot be read, or has too few posts.
    """
    wanted = _read_ids(ids) if ids else None
    if min(sizes) < 1:
        raise BadSource(f"{sizes[0]} training and {sizes[1]} evaluation rows requested; expected at least 1 of each")
    count = token_counter(tokenizer)
    rows_read = read(load(source, *hub), *columns, _where(source, *hub))
    posts = {name: (post, summary) for name, post, summary in rows_read}
    if wanted:
        names = [*wanted["train"], *wanted["test"]]
        sizes = (len(wanted["train"]), len(wanted["test"]))
    else:
        names = sorted(posts)  # sorted: independent of the source
        random.Random(seed).shuffle(names)
    if absent := [name for name in names if name not in posts]:
        raise BadSource(f"{len(absent)} of the rows in {ids} are not in the source; the first is {absent[0]}")
    drawn, overlong = _draw(names, posts, count, sum(sizes), max_prompt_tokens)
    report = {
        "source": source or f"{hub[0]} at {hub[1]}",
        "posts": len(posts),
        "overlong_among_those_looked_at": overlong,
        "max_prompt_tokens": max_prompt_tokens,
        "seed": seed,
    }
    splits = {"train": drawn[: sizes[0]], "test": drawn[sizes[0] :]}
    rows = {
        split: [make_row(name, *posts[name], index, split, tokens) for index, (name, tokens) in enumerate(part)]
        for split, part in splits.items()
    }
    return _write(out, rows, report)


def _draw(
    names: Sequence[str], posts: Mapping[str, tuple[str, str]], count: Callable[..., int], number: int, limit: int
) -> tuple[list[tuple[str, int]], int]:
    """The first ``number`` posts whose prompt has at most ``limit`` tokens.

    Returns:
        tuple[list[tuple[str, int]], int]: their ids and prompt lengths, and how many longer ones were skipped.

    Raises:
        BadSource: if there are fewer.
    """
    drawn: list[tuple[str, int]] = []
    overlong = 0
    for name in names:
        if len(drawn) == number:
            break
        tokens = count(prompt(posts[name][0]))
        if tokens > limit:
            overlong += 1
        else:
            drawn.append((name, tokens))
    if len(drawn) < number:
        raise BadSource(f"{len(drawn)} posts of at most {limit} tokens; {number} are needed")
    return drawn, overlong


def _write(out: Path, splits: Mapping[str, list[dict[str, Any]]], report: dict[str, Any]) -> dict[str, Any]:
    """Write the rows, their ids, and the report with the lengths of each split, which is returned."""
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(out / f"{split}.parquet")
        report = {**report, split: _lengths(rows)}
    ids = {split: [row["extra_info"]["id"] for row in rows] for split, rows in splits.items()}
    (out / "ids.json").write_text(json.dumps(ids))
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _lengths(rows: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {
        "prompt_tokens": [row["extra_info"]["prompt_tokens"] for row in rows],
        "reference_words": [row["extra_info"]["reference_words"] for row in rows],
    }
    return {"rows": len(rows)} | {
        name: {"min": min(values), "median": float(np.median(values)), "max": max(values)}
        for name, values in numbers.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a local .json, .jsonl or .parquet; the Hub's data set if absent")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--hub", default=HUB, help=f"the Hub's data set ({HUB})")
    parser.add_argument("--revision", default=REVISION, help=f"its revision ({REVISION})")
    parser.add_argument("--post-column", default=POST, help=f"column of the posts ({POST})")
    parser.add_argument("--summary-column", default=SUMMARY, help=f"column of the summaries ({SUMMARY})")
    parser.add_argument("--tokenizer", default="Qwen/Qwen2.5-1.5B-Instruct", help="of the trained model")
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS)
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS)
    parser.add_argument("--max-prompt-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ids", type=Path, help="an ids.json: use exactly these rows")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    disable_progress_bar()
    try:
        report = prepare(
            arguments.out,
            source=arguments.source,
            tokenizer=arguments.tokenizer,
            hub=(arguments.hub, arguments.revision),
            columns=(arguments.post_column, arguments.summary_column),
            sizes=(arguments.train_rows, arguments.test_rows),
            max_prompt_tokens=arguments.max_prompt_tokens,
            seed=arguments.seed,
            ids=arguments.ids,
        )
    except BadSource as fault:
        raise SystemExit(f"data_prep.tldr: {fault}") from None
    logger.info("%s", json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
