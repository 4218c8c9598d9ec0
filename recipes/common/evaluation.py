"""What the evaluations of a checkpoint share: their options, and the files with their settings and results."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.common import sampling
from saw.records.files import write_whole
from saw.records.provenance import commit, machine


def parser(
    description: str | None, *, temperature: float, max_tokens: int, why: str, threads: int
) -> argparse.ArgumentParser:
    """The options of every evaluation.

    Args:
        description (str | None): of the evaluation.
        temperature (float): default of the sampling.
        max_tokens (int): default of the sampling.
        why (str): source of these two defaults.
        threads (int): default of the requests in flight.
    """
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, help="a Hugging Face folder or name")
    options.add_argument("--out", type=Path, required=True, help="folder for replies and scores")
    options.add_argument("--runs", type=int, default=4, help="number of times that every item is asked (4)")
    sampling.add_options(options, temperature=temperature, max_tokens=max_tokens, why=why)
    options.add_argument("--limit", type=int, help="only the first items (BFCL: of each category); for rehearsals")
    options.add_argument("--threads", type=int, default=threads, help=f"requests in flight to the server ({threads})")
    options.add_argument("--gpus", type=int, default=1, help="copies of the model, one per GPU; 0: on the CPU")
    options.add_argument(
        "--vllm", nargs=argparse.REMAINDER, default=[], help="options for `vllm serve`; must come last"
    )
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Read and check the command line; adds ``sampling``, a :class:`~recipes.common.sampling.Sampling`."""
    arguments = options.parse_args()
    arguments.sampling = sampling.from_options(options, arguments)
    for name in ("runs", "threads", "limit"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            options.error(f"--{name} is {value}; expected at least 1")
    return arguments


def claim(folder: Path, settings: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Record in ``settings.json`` the settings that a folder's results are made with.

    Args:
        folder (Path): of the results; created if needed.
        settings (Mapping): everything that the results depend on, as JSON values.
        free (Sequence[str]): settings that may differ from those of an earlier call.

    Raises:
        SystemExit: if the folder holds results that were made with other settings.
    """
    path = folder / "settings.json"
    if path.exists():
        earlier = json.loads(path.read_text())
        for key, value in settings.items():
            if key not in free and earlier.get(key) != value:
                there = f"{folder} holds an evaluation with {key} {earlier.get(key)}, not {value}"
                raise SystemExit(f"{there}; remove it, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=2) + "\n")


def write(
    folder: Path, module: str, versions: str, settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write ``evaluation.json``: settings, results and their provenance.

    Args:
        folder (Path): of the results.
        module (str): of the evaluation, for its command.
        versions (str): of the software.
        settings (Mapping): everything that the results depend on.
        runs (Sequence[Mapping]): the results of each run.

    Returns:
        dict[str, Any]: the content of the file.
    """
    command = f"python -m {module} {shlex.join(sys.argv[1:])}"
    source = {"command": command, "commit": commit(), "machine": machine(), "versions": versions}
    content = {"settings": dict(settings), "runs": list(runs), "provenance": source}
    write_whole(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
    return content
