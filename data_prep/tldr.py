"""Reddit posts and their summaries, for the summarisation experiment, in verl's schema.

    python -m data_prep.tldr --out data/tldr                              # from the Hub
    python -m data_prep.tldr --source posts.jsonl --out data/tldr         # a local .json, .jsonl or .parquet

2,560 training rows and 256 for evaluation, drawn by seed, disjoint, no post twice. A post whose prompt is longer than
``--max-prompt-tokens`` is left out before the draw, and counted; nothing is cut. ``ids.json`` names the rows that were
drawn: given back with ``--ids``, others get the same ones whatever has become of the order of the source.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from datasets.utils.logging import disable_progress_bar

logger = logging.getLogger(__name__)

#: The Hub's data set, our assumption (docs/sources.md): name, revision, and where the post and the summary stand.
HUB, REVISION, POST, SUMMARY = "trl-lib/tldr", "main", "prompt", "completion"
TRAIN_ROWS, TEST_ROWS = 2560, 256
INSTRUCTION = "Summarize the following Reddit post in one or two sentences. Reply with the summary only."


class BadSource(ValueError):
    """A source that cannot be used; the message says what is wrong."""


def load(source: str | None, name: str, revision: str) -> Dataset:
    """The posts, from a file or from the Hub.

    Raises:
        BadSource: if that fails.
    """
    try:
        if source is None:
            return load_dataset(name, revision=revision, split="train")
        if not Path(source).is_file():
            raise BadSource(f"{source}: there is no such file")
        kind = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(Path(source).suffix)
        if kind is None:
            raise BadSource(f"{source}: expected a .json, .jsonl or .parquet")
        return load_dataset(kind, data_files=source, split="train")
    except (OSError, ConnectionError) as error:
        where = source or f"the Hub's {name} at revision {revision}"
        raise BadSource(f"{where} could not be read ({error}); without a network, give --source a file") from error


def read(rows: Dataset, post: str, summary: str) -> Iterator[tuple[str, str, str]]:
    """Id, post and summary of each row; empty ones and repeated posts are left out.

    Raises:
        BadSource: if a column is absent.
    """
    for column in (post, summary):
        if column not in rows.column_names:
            raise BadSource(f"there is no column {column!r}; there are {', '.join(rows.column_names)}")
    seen = set()
    for row in rows:
        text, reference = (row[post] or "").strip(), (row[summary] or "").strip()
        text = text.removesuffix("TL;DR:").strip()
        name = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        if text and reference and name not in seen:
            seen.add(name)
            yield name, text, reference


def prompt(post: str) -> list[dict[str, str]]:
    """What the model is asked."""
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
    """Do the whole job.

    Args:
        out (Path): folder for ``train.parquet``, ``test.parquet``, ``ids.json`` and ``report.json``.
        source (str | None): a local file; None takes the Hub's.
        tokenizer (str): that of the model, by which prompts are measured.
        hub (tuple[str, str]): name and revision of the Hub's data set.
        columns (tuple[str, str]): of the post and of the summary.
        sizes (tuple[int, int]): training and evaluation rows.
        max_prompt_tokens (int): longer prompts are left out.
        seed (int): of the draw.
        ids (Path | None): an ``ids.json``, to take just these rows.

    Returns:
        dict[str, Any]: the report.

    Raises:
        BadSource: if the source cannot be read, or has too few posts.
    """
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(tokenizer)
    posts = {name: (post, summary) for name, post, summary in read(load(source, *hub), *columns)}
    wanted = json.loads(ids.read_text()) if ids else None
    names = [*wanted["train"], *wanted["test"]] if wanted else sorted(posts)  # sorted: the source's order plays no part
    absent = [name for name in names if name not in posts]
    if absent:
        raise BadSource(f"{len(absent)} of the rows in {ids} are not in the source; the first is {absent[0]}")
    if not wanted:
        random.Random(seed).shuffle(names)
    drawn: list[tuple[str, int]] = []
    overlong = 0
    for name in names:
        if len(drawn) == sum(sizes) and not wanted:
            break
        tokens = len(encoder.apply_chat_template(prompt(posts[name][0]), add_generation_prompt=True, return_dict=False))
        if tokens > max_prompt_tokens:
            overlong += 1
            continue
        drawn.append((name, tokens))
    if wanted:
        sizes = (len(wanted["train"]), len(wanted["test"]))
    if len(drawn) < sum(sizes):
        raise BadSource(f"{len(drawn)} posts of at most {max_prompt_tokens} tokens; {sum(sizes)} are wanted")
    splits = {"train": drawn[: sizes[0]], "test": drawn[sizes[0] :]}
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "source": source or f"{hub[0]} at {hub[1]}",
        "posts": len(posts),
        "overlong_among_those_looked_at": overlong,
        "max_prompt_tokens": max_prompt_tokens,
        "seed": seed,
    }
    for split, rows in splits.items():
        made = [make_row(name, *posts[name], index, split, tokens) for index, (name, tokens) in enumerate(rows)]
        Dataset.from_list(made).to_parquet(out / f"{split}.parquet")
        report[split] = _lengths(made)
    (out / "ids.json").write_text(json.dumps({split: [name for name, _ in rows] for split, rows in splits.items()}))
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
    parser.add_argument("--post-column", default=POST, help=f"({POST})")
    parser.add_argument("--summary-column", default=SUMMARY, help=f"({SUMMARY})")
    parser.add_argument("--tokenizer", default="Qwen/Qwen2.5-1.5B-Instruct", help="of the model that is trained")
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS)
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS)
    parser.add_argument("--max-prompt-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ids", type=Path, help="an ids.json: take just these rows")
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
