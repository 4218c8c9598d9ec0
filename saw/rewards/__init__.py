"""Reward functions. Each returns a dict of its objectives' values and their sum under ``score``."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def returns(*objectives: str) -> Callable[[Function], Function]:
    """Declare which objectives a reward function returns, so that another one is refused before Ray starts."""

    def declare(function: Function) -> Function:
        function.objectives = objectives  # type: ignore[attr-defined]
        return function

    return declare
