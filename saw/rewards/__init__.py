"""Reward functions. Each returns a dict of its objectives' values and their sum under ``score``."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
#: Where verl's configuration holds the options of the judge: an argument of the reward function.
JUDGE = "reward.custom_reward_function.reward_kwargs.judge"
#: ``bounds(step, **reward_kwargs)`` gives the smallest and largest value of each objective that is on.
Bounds = Callable[..., Mapping[str, tuple[float, float]]]
#: ``check(**reward_kwargs)`` raises a ValueError for arguments that cannot work.
Check = Callable[..., None]


def returns(
    *objectives: str, bounds: Bounds | None = None, check: Check | None = None
) -> Callable[[Function], Function]:
    """Declare which objectives a reward function returns, so that another one is refused before Ray starts.

    With ``bounds`` the reward function also states their ranges, which may depend on the training step and on its
    own arguments: objectives need no minimum in the configuration then, and SAW's follows the reward's.

    Args:
        objectives (str): their names.
        bounds (Bounds | None): their ranges.
        check (Check | None): looks at the reward function's arguments before anything is started.

    Returns:
        Callable: a decorator that leaves the function as it is.
    """

    def declare(function: Function) -> Function:
        function.objectives = objectives  # type: ignore[attr-defined]
        function.bounds = bounds  # type: ignore[attr-defined]
        function.check = check  # type: ignore[attr-defined]
        return function

    return declare
