"""ToolRL's training data in verl's schema.

    python -m data_prep.toolrl --source rlla_rl.json --out data/toolrl
    python -m data_prep.toolrl --source train.parquet --out data/toolrl

``--source`` is a path or a URL: the raw file, a JSON array of ``instruction``, ``input`` and ``output``, or a parquet
that already has verl's schema. A raw file is shuffled with numpy's seed 31415 and its last 2 % become
``test.parquet``, as in ToolRL's own script; a parquet keeps its rows and its name. Every row is checked: a bad row
stops the job with an error that names row and fault, or is written to ``rejects.jsonl`` with ``--skip-bad``.
``report.json`` holds counts and checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import List as ListOf
from datasets.arrow_writer import ArrowWriter
from datasets.utils.logging import disable_progress_bar

from data_prep.download import DownloadFailed, fetch
from data_prep.sources import BadSource, fault_of_messages, fault_of_text, read_json, read_parquet, token_counter
from saw.rewards.toolrl import format_reward, is_tool_call, parse_tool_calls

logger = logging.getLogger(__name__)

SPLIT_SEED = 31415
HELD_OUT = 0.02
WORK = ".work"  # folder for temporary files

TEXT = Value("string")
RAW_FEATURES = Features({"instruction": TEXT, "input": TEXT, "output": TEXT})
FEATURES = Features(
    {
        "data_source": TEXT,
        "prompt": ListOf({"role": TEXT, "content": TEXT}),
        "ability": TEXT,
        "reward_model": {"ground_truth": TEXT, "style": TEXT},
        "extra_info": {"index": Value("int64"), "input": TEXT, "instruction": TEXT, "output": TEXT, "split": TEXT},
    }
)


def make_row(instruction: str, question: str, output: str, index: int, split: str) -> dict[str, Any]:
    """One row of ToolRL's RL split in verl's schema."""
    return {
        "data_source": "rlla",
        "prompt": [{"role": "system", "content": instruction}, {"role": "user", "content": question}],
        "ability": "math",  # as in the original, even though the task is not math
        "reward_model": {"ground_truth": output, "style": "rule"},
        "extra_info": {"index": index, "input": question, "instruction": instruction, "output": output, "split": split},
    }


@dataclass
class Report:
    """Counts and checksums of what was read and written.

    Attributes:
        rows (Counter): number of rows by split, and of ``rejected`` ones.
        answers (Counter): number of answers by kind: ``tool_call``, ``response``, ``both``.
        calls (Counter): number of answers by their number of tool calls.
        checksums (dict[str, str]): SHA-256 of the source and of each file written.
        prompt_tokens (dict[str, Any]): prompt lengths with the given tokenizer.
    """

    rows: Counter = field(default_factory=Counter)
    answers: Counter = field(default_factory=Counter)
    calls: Counter = field(default_factory=Counter)
    checksums: dict[str, str] = field(default_factory=dict)
    prompt_tokens: dict[str, Any] = field(default_factory=dict)

    def count_answer(self, output: str) -> None:
        """Count one reference answer."""
        has_call, has_response = "<tool_call>" in output, "<response>" in output
        kind = "both" if has_call and has_response else "tool_call" if has_call else "response"
        self.answers[kind] += 1
        self.calls[len(parse_tool_calls(output)) if has_call else 0] += 1

    def write(self, path: Path) -> None:
        """Write the report as JSON, with sorted counts."""
        content = {
            "rows": dict(self.rows),
            "answers": dict(sorted(self.answers.items())),
            "calls_in_an_answer": dict(sorted(self.calls.items())),
            "prompt_tokens": self.prompt_tokens,
            "sha256": self.checksums,
        }
        path.write_text(json.dumps(content, indent=2) + "\n")


def check_output(output: Any) -> None:
    """Check a reference answer.

    Raises:
        BadSource: if the reward function could not use it.
    """
    if fault := fault_of_text(output):
        raise BadSource(f"output {fault}")
    if "<tool_call>" not in output and "<response>" not in output:
        raise BadSource("output has neither <tool_call> nor <response>")
    if "<tool_call>" in output:
        try:
            calls = parse_tool_calls(output)
        except (ValueError, RecursionError) as error:
            raise BadSource(f"the tool calls of output do not parse: {error}") from error
        for call in calls:
            if not is_tool_call(call):
                raise BadSource(f"a tool call needs a name and a dictionary of parameters; it is {str(call)[:80]}")
    if format_reward(output.strip(), output) != 1.0:
        raise BadSource("output itself does not have the format that it would be rewarded for")


def check_raw(row: Any) -> None:
    """Check one row of the raw file.

    Raises:
        BadSource: naming the fault.
    """
    if not isinstance(row, dict):
        raise BadSource(f"it is {type(row).__name__}; expected an object with instruction, input and output")
    for key in ("instruction", "input", "output"):
        if fault := fault_of_text(row.get(key)):
            raise BadSource(f"{key} {fault}")
    check_output(row["output"])


def check_row(row: dict[str, Any]) -> None:
    """Check one row in verl's schema.

    Raises:
        BadSource: naming the fault.
    """
    for key in FEATURES:
        if key not in row:
            raise BadSource(f"there is no column {key!r}; there are {', '.join(row)}")
    for key in ("data_source", "ability"):
        if fault := fault_of_text(row[key]):
            raise BadSource(f"{key} {fault}")
    if fault := fault_of_messages(row["prompt"]):
        raise BadSource(f"prompt {fault}")
    for key in ("reward_model", "extra_info"):
        if not isinstance(row[key], dict):
            raise BadSource(f"{key} is {str(row[key])[:60]!r}; expected {', '.join(FEATURES[key])}")
        for name in FEATURES[key]:
            _check_cell(f"{key}.{name}", row[key].get(name))
    check_output(row["reward_model"]["ground_truth"])


def _check_cell(name: str, value: Any) -> None:
    if name == "extra_info.index":
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise BadSource(f"{name} is {value!r}; expected an integer that is at least 0")
    elif not (name.startswith("extra_info.") and value == "") and (fault := fault_of_text(value)):
        raise BadSource(f"{name} {fault}")


def split_order(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the raw rows into training and held-out rows, in ToolRL's order.

    Args:
        rows (int): number of raw rows.

    Returns:
        tuple[np.ndarray, np.ndarray]: indices of the training rows and of the held-out rows.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(rows)
    held_out = int(rows * HELD_OUT)
    return order[: rows - held_out], order[rows - held_out :]


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Checked:
    """Iterates over the good rows; records the bad ones, or stops at the first."""

    def __init__(self, path: Path, rows: Iterator[Any], check: Any, report: Report, rejects: Path | None):
        self.path, self.rows, self.check, self.report, self.rejects = path, rows, check, report, rejects

    def __iter__(self) -> Iterator[Any]:
        for number, row in enumerate(self.rows):
            try:
                self.check(row)
            except BadSource as fault:
                self._reject(number, row, fault)
                continue
            yield row

    def _reject(self, number: int, row: Any, fault: BadSource) -> None:
        if self.rejects is None:
            raise BadSource(f"{self.path}: row {number}: {fault} (--skip-bad leaves such rows out)") from fault
        self.report.rows["rejected"] += 1
        with self.rejects.open("a") as file:
            file.write(json.dumps({"row": number, "fault": str(fault), "content": row}, default=str) + "\n")


def prepare(
    source: str, out: Path, *, skip_bad: bool = False, tokenizer: str | None = None, max_prompt_tokens: int = 2048
) -> Report:
    """Read, check, split and write the rows.

    Args:
        source (str): path or URL of the raw file (.json) or of a parquet.
        out (Path): folder for the parquet files and the report.
        skip_bad (bool): write bad rows to ``rejects.jsonl`` instead of stopping.
        tokenizer (str | None): a Hugging Face tokenizer, to measure the prompts.
        max_prompt_tokens (int): the limit that they are compared with.

    Returns:
        Report: also written to ``report.json``.

    Raises:
        BadSource: at the first bad row, unless bad rows are skipped; or if the file cannot be read to its end.
        DownloadFailed: if the source cannot be downloaded.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = fetch(source, out / "download")
    report = Report(checksums={path.name: sha256(path)})
    rejects = out / "rejects.jsonl" if skip_bad else None
    if rejects is not None:
        rejects.unlink(missing_ok=True)
    if path.suffix not in (".json", ".parquet"):
        raise BadSource(f"{path}: expected a .json or a .parquet, not {path.suffix or 'a file without a suffix'}")
    work = out / WORK / "rows.arrow"
    if path.suffix == ".json":
        raw = _Checked(path, read_json(path), check_raw, report, rejects)
        splits = _split_raw(_on_disk(raw, RAW_FEATURES, work))
    else:
        rows = _Checked(path, read_parquet(path), check_row, report, rejects)
        splits = {path.stem: _on_disk(rows, FEATURES, work)}
        _warn_of_other_columns(path)
    for name, split in splits.items():
        if len(split) == 0:
            raise BadSource(f"{path} leaves no row for {name}.parquet")
        file = out / f"{name}.parquet"
        split.to_parquet(file)
        report.rows[name] = len(split)
        report.checksums[file.name] = sha256(file)
        for row in split:
            report.count_answer(row["reward_model"]["ground_truth"])
    if tokenizer is not None:
        report.prompt_tokens = measure_prompts(splits, tokenizer, max_prompt_tokens)
    shutil.rmtree(out / WORK)
    report.write(out / "report.json")
    return report


def _warn_of_other_columns(path: Path) -> None:
    other = _other_fields(pq.read_schema(path), FEATURES)
    if other:
        logger.warning("%s: not kept, as ToolRL's rows do not have them: %s", path, ", ".join(other))


def _other_fields(fields: Iterable[pa.Field], features: Any, prefix: str = "") -> list[str]:
    """Names of the columns, and of nested fields, that are not in the features."""
    other = []
    for column in fields:
        if column.name not in features:
            other.append(f"{prefix}{column.name}")
            continue
        inner, type_ = features[column.name], column.type
        if isinstance(inner, ListOf) and pa.types.is_list(type_):
            inner, type_ = inner.feature, type_.value_type
        if isinstance(inner, dict) and pa.types.is_struct(type_):
            within = [type_.field(place) for place in range(type_.num_fields)]
            other += _other_fields(within, inner, f"{prefix}{column.name}.")
    return other


def _own(value: Any, feature: Any) -> Any:
    """A value reduced to the fields in the features."""
    if isinstance(feature, dict):
        return {name: _own(value[name], inner) for name, inner in feature.items()}
    if isinstance(feature, ListOf):
        return [_own(item, feature.feature) for item in value]
    return value


def _on_disk(rows: Iterable[Any], features: Features, path: Path) -> Dataset:
    """Write rows to an Arrow file as they come, and memory-map it: only one batch is in memory at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in rows:
            writer.write(_own(row, features))
        writer.finalize()
    return Dataset.from_file(str(path))


def _split_raw(raw: Dataset) -> dict[str, Dataset]:
    def convert(indices: np.ndarray, split: str) -> Dataset:
        """The chosen rows in verl's schema."""
        return raw.select(indices).map(
            lambda row, number: make_row(row["instruction"], row["input"], row["output"], number, split),
            with_indices=True,
            remove_columns=raw.column_names,
            features=FEATURES,
            load_from_cache_file=False,
        )

    train, test = split_order(len(raw))
    return {"train": convert(train, "train"), "test": convert(test, "test")}


def measure_prompts(splits: dict[str, Dataset], tokenizer: str, limit: int) -> dict[str, Any]:
    """Prompt lengths in tokens, including the chat template, and how many are above the limit."""
    count = token_counter(tokenizer)
    lengths = np.array([count(row["prompt"]) for split in splits.values() for row in split])
    return {
        "tokenizer": tokenizer,
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "max": int(lengths.max()),
        "limit": limit,
        "above_the_limit": int((lengths > limit).sum()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="path or URL of the raw .json or of a .parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--skip-bad", action="store_true", help="write bad rows to rejects.jsonl instead of stopping")
    parser.add_argument("--tokenizer", help="a Hugging Face tokenizer, to report the prompts' lengths")
    parser.add_argument("--max-prompt-tokens", type=int, default=2048, help="the limit for these lengths (2048)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bar()
    try:
        prepare(
            arguments.source,
            arguments.out,
            skip_bad=arguments.skip_bad,
            tokenizer=arguments.tokenizer,
            max_prompt_tokens=arguments.max_prompt_tokens,
        )
    except (BadSource, DownloadFailed, FileNotFoundError) as fault:
        raise SystemExit(f"data_prep.toolrl: {fault}") from None
    logger.info("%s", (arguments.out / "report.json").read_text())


if __name__ == "__main__":
    main()
