"""BFCL's result files of one run: which items have a reply, were refused by the server, or must be asked again.

BFCL records a failed request as the item's reply, and counts it as a wrong answer whatever the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saw.records.files import keep_lines, read_lines

#: What BFCL writes instead of a reply when a request fails.
FAILED = "Error during inference"
#: In the traceback: the server refused the request (HTTP 400), for example because it is too long; a retry is useless.
REFUSED = "BadRequestError"


class RefusedAtOnce(RuntimeError):
    """The server refused an item's first request, so no reply of the model was the reason."""


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The entries of each category: ``id``, ``result`` and, if the request failed, ``traceback``.

    Args:
        folder (Path): holds result files at any depth.
    """
    return {_category(path): read_lines(path) for path in _files(folder)}


def is_refused(entry: Mapping[str, Any]) -> bool:
    """Whether the server refused one of the item's requests, so that it has no reply."""
    return _has_failed(entry) and REFUSED in entry["traceback"]


def refusals(folder: Path) -> dict[str, Any]:
    """How many items the server refused.

    Returns:
        dict[str, Any]: ``items``; ``at_once``, those refused with their first request (a multi-turn item may also
        outgrow the model's context later); and ``categories``, the refused items per category.
    """
    refused = {name: [entry for entry in entries if is_refused(entry)] for name, entries in read(folder).items()}
    return {
        "items": sum(map(len, refused.values())),
        "at_once": sum(_is_refused_at_once(entry) for entries in refused.values() for entry in entries),
        "categories": {name: len(entries) for name, entries in refused.items() if entries},
    }


def fault_of_refusals(folder: Path, limit: float) -> str | None:
    """Why a run is invalid: the server refused too many first requests; None if it is valid.

    Args:
        folder (Path): of the result files.
        limit (float): largest share of the run's items that may be refused. A category refused as a whole is too much
            unless the limit is 1; a run without any reply always is.
    """
    results = read(folder)
    refused = {name: [entry for entry in entries if _is_refused_at_once(entry)] for name, entries in results.items()}
    counts = {name: (len(refused[name]), len(entries)) for name, entries in results.items() if refused[name]}
    items, total = sum(map(len, refused.values())), sum(map(len, results.values()))
    whole = [name for name, (count, of) in counts.items() if count == of]
    too_many = items > limit * total or items == total or (whole and limit < 1)
    if not items or not too_many:
        return None
    first = next(entry for entries in refused.values() for entry in entries)
    parts = ", ".join(f"{count} of {of} of {name}" for name, (count, of) in counts.items())
    return (
        f"the server refused {items} of {total} items (HTTP 400): {parts}; the first, {first['id']}: {first['result']}"
    )


def forget(folder: Path, at_once: bool = False) -> list[str]:
    """Remove entries from the result files, so that their items are asked again.

    Removes lines cut off by a kill, failures that are not the item's fault, such as an unreachable server, and, with
    ``at_once``, items that the server refused with their first request.

    Returns:
        list[str]: a description of each removed entry.
    """

    def is_reply(entry: Any) -> bool:
        if not isinstance(entry, dict) or "id" not in entry or "result" not in entry:
            return False
        if at_once and _is_refused_at_once(entry):
            return False
        return not _has_failed(entry) or is_refused(entry)

    return [
        f"{left['id']}: {left['result']}" if isinstance(left, dict) and "result" in left else f"{path.name}: cut line"
        for path in _files(folder)
        for left in keep_lines(path, is_reply)
    ]


def absent(folder: Path, wanted: Mapping[str, Sequence[str]]) -> list[str]:
    """Ids of the items that have no entry.

    Args:
        folder (Path): of the result files.
        wanted (Mapping[str, Sequence[str]]): ids of the items of each category.
    """
    there = {category: {entry["id"] for entry in entries} for category, entries in read(folder).items()}
    return [name for category, names in wanted.items() for name in names if name not in there.get(category, ())]


def replies(folder: Path) -> Iterator[str]:
    """Every reply of the model: one per single-turn item, all of a multi-turn item."""
    for entries in read(folder).values():
        for entry in entries:
            if not is_refused(entry):
                yield from _texts(entry["result"])


def _texts(result: Any) -> Iterator[str]:
    if isinstance(result, list):
        for part in result:
            yield from _texts(part)
    else:
        yield result


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*_result.json"))


def _category(path: Path) -> str:
    return path.name.removeprefix("BFCL_v4_").removesuffix("_result.json")


def _has_failed(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry["result"], str) and entry["result"].startswith(FAILED) and "traceback" in entry


def _is_refused_at_once(entry: Mapping[str, Any]) -> bool:
    return is_refused(entry) and RefusedAtOnce.__name__ in entry["traceback"]
