"""What a user is told: errors that a command shows without a traceback, and messages for what pydantic refuses."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError


class WrongVersion(ImportError):
    """Another version of verl is installed; the message has the command that installs the right one."""


class TrainingEnded(RuntimeError):
    """A training can't go on; the message says why, and how to resume."""


def readable(error: ValidationError, prefix: str, model: type[BaseModel]) -> str:
    """One line per fault: the key as written in an override, what is wrong, the value, what is allowed.

    Args:
        error (ValidationError): pydantic's error.
        prefix (str): the section's key in the configuration.
        model (type[BaseModel]): the section's type.
    """
    lines: dict[str, None] = {}  # in order; each once, as every type of a union repeats some
    places = [fault["loc"] for fault in error.errors()]
    for fault in error.errors():
        if fault["type"] == "too_short" and any(
            place[: len(fault["loc"])] == fault["loc"] != place for place in places
        ):
            continue  # only because its entries are wrong
        key = ".".join(str(part) for part in (prefix, *fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            lines[f"{key} is not set"] = None
            continue
        if fault["type"] == "extra_forbidden":
            message = f"there is no such setting; allowed are {', '.join(_fields(model, fault['loc'][:-1]))}"
        value = "" if fault["type"] == "value_error" else f"; it is {fault['input']!r}"  # a validator's has it
        lines[f"{key}: {message}{value}"] = None
    return "\n".join(lines)


def _fields(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """The fields of the model at a path inside another."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((kind for kind in inner if inspect.isclass(kind) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
