"""Sampling parameters of an evaluation; all of them are sent with every request.

A server fills in missing parameters, vLLM by default from the model's ``generation_config.json``
(Qwen2.5-1.5B-Instruct: repetition penalty 1.1, top-p 0.8, top-k 20). Only the standard library is imported, because
BFCL's environment uses this module too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters of a reply; except for the first two, the defaults have no effect.

    Attributes:
        temperature (float): 0 takes the most likely token.
        max_tokens (int): maximum number of tokens of a reply.
        top_p (float): share of the probability mass to sample from, in (0, 1].
        top_k (int): number of tokens to sample from; -1 for all.
        min_p (float): minimum probability of a token, relative to the most likely one's.
        repetition_penalty (float): 1 for none.
        presence_penalty (float): 0 for none.
        frequency_penalty (float): 0 for none.

    Raises:
        ValueError: naming a parameter that is out of its range.
    """

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0 <= self.temperature < math.inf, "at least 0"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k == -1 or self.top_k >= 1, "at least 1, or -1 for all tokens"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 for none"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "between -2 and 2; 0 for none"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "between -2 and 2; 0 for none"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {expected}")

    def as_dict(self) -> dict[str, Any]:
        """All parameters by name."""
        return asdict(self)

    def options(self) -> list[str]:
        """All parameters as options of a command line, see :func:`add_options`."""
        return [text for name, value in asdict(self).items() for text in (f"--{name.replace('_', '-')}", str(value))]

    def request(self, seed: int, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Keyword arguments of the OpenAI client's ``chat.completions.create``, without model and messages.

        The request's seed is a hash of both arguments. With one seed for all requests, they would share their random
        numbers, and different questions would get similar answers.

        Args:
            seed (int): of the sampling; the runs of an evaluation have different ones.
            messages (Sequence[Mapping[str, Any]]): of the request.
        """
        parameters = asdict(self)
        beyond_openai = {name: parameters.pop(name) for name in ("top_k", "min_p", "repetition_penalty")}
        identity = json.dumps([seed, list(messages)], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).digest()
        return {**parameters, "seed": int.from_bytes(digest[:4], "big"), "extra_body": beyond_openai}


def add_options(parser: argparse.ArgumentParser, *, temperature: float, max_tokens: int, why: str) -> None:
    """Add an option for each sampling parameter.

    Args:
        parser (argparse.ArgumentParser): the command line.
        temperature (float): default.
        max_tokens (int): default.
        why (str): source of these two defaults.
    """
    parser.add_argument("--temperature", type=float, default=temperature, help=f"of the replies ({temperature}, {why})")
    parser.add_argument("--max-tokens", type=int, default=max_tokens, help=f"of a reply ({max_tokens}, {why})")
    for name, value in Sampling(temperature=temperature, max_tokens=max_tokens).as_dict().items():
        if name not in ("temperature", "max_tokens"):
            option = f"--{name.replace('_', '-')}"
            parser.add_argument(option, type=type(value), default=value, help=f"of the sampling ({value}, no effect)")


def from_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Sampling:
    """The sampling parameters of a command line; a value out of range ends the program with a message."""
    try:
        return Sampling(**{name: getattr(arguments, name) for name in Sampling.__dataclass_fields__})
    except ValueError as fault:
        parser.error(f"--{str(fault).replace('_', '-', 1)}")
