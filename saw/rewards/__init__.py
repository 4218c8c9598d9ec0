"""Reward functions. Each returns a dict of its objectives' values and their sum under ``score``."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
#: Key of the judge's options in verl's configuration; they are an argument of the reward function.
JUDGE = "reward.custom_reward_function.reward_kwargs.judge"
#: ``bounds(step, **reward_kwargs)`` returns the smallest and largest value of each objective that is enabled.
Bounds = Callable[..., Mapping[str, tuple[float, float]]]
#: ``check(**reward_kwargs)`` raises a ValueError for arguments that cannot work.
Check = Callable[..., None]


def returns(
    *objectives: str, bounds: Bounds | None = None, check: Check | None = None
) -> Callable[[Function], Function]:
    """Declare which objectives a reward function returns, so that any other is refused before Ray starts.

    With ``bounds``, the reward function also declares their ranges, which may depend on the training step and on its
    arguments. The objectives then need no minimum in the configuration; SAW uses the declared one at each step.

    Args:
        objectives (str): their names.
        bounds (Bounds | None): their ranges.
        check (Check | None): checks the reward function's arguments before anything is started.

    Returns:
        Callable: a decorator that returns the function itself.

    Raises:
        TypeError: for no name, anything but text as a name, or ``bounds`` or ``check`` that cannot be called.
    """
    if not objectives or not all(isinstance(name, str) for name in objectives):
        raise TypeError(f"saw.rewards.returns gets {objectives!r}; expected the names of the objectives")
    for argument, function in (("bounds", bounds), ("check", check)):
        if function is not None and not callable(function):
            raise TypeError(f"saw.rewards.returns: {argument} is {function!r}; expected a function")

    def declare(function: Function) -> Function:
        function.objectives = objectives  # type: ignore[attr-defined]
        function.bounds = bounds  # type: ignore[attr-defined]
        function.check = check  # type: ignore[attr-defined]
        return function

    return declare
