"""Refuses, before the first rollout, a method that needs something that the trainer cannot provide."""

from __future__ import annotations

from collections.abc import Iterable

from saw.method.objective import Objective
from saw.method.options import Options
from saw.method.registry import get_method

#: Options that read the weights of the previous step.
_SMOOTHING = ("ema", "max_change")


def refuse_gradients(method: str, options: Options, host: str) -> None:
    """Refuse methods that compare policy gradients, for a trainer that does not compute those of each objective.

    Raises:
        ValueError: naming the method and the measure, if they compare gradients.
    """
    if "gradients" in get_method(method).needs(options):
        raise ValueError(
            f"method is {method!r} with informativeness {options.informativeness!r}, which compares the policy "
            f"gradients of the objectives; {host} does not compute them: use another method or measure, or verl"
        )


def refuse_memory(method: str, options: Options, host: str) -> None:
    """Refuse options that need the previous weights, for a trainer that keeps nothing between two steps.

    Raises:
        ValueError: naming the option, or the method, that needs the previous step.
    """
    chosen = get_method(method)
    unkept = f"{host} keeps nothing between two steps"
    for option in _SMOOTHING:
        if option in chosen.reads(options) and (value := getattr(options, option)):
            raise ValueError(
                f"options.{option} is {value}, which needs the weights of the previous step; {unkept}: leave it out, "
                "or use verl or TRL"
            )
    if remembered := sorted(chosen.weighting.remembers):
        raise ValueError(
            f"method is {method!r}, which remembers {', '.join(remembered)} from step to step; {unkept}: use another "
            "method, or verl or TRL"
        )


def refuse_turns(objectives: Iterable[Objective], host: str) -> None:
    """Refuse objectives of a turn, for a trainer that takes one advantage per sample.

    Raises:
        ValueError: naming the objective and its turn.
    """
    for objective in objectives:
        if objective.turn is not None:
            raise ValueError(
                f"{objective.name!r} belongs to turn {objective.turn}, but {host} gives every token of a sample the "
                "same advantage: leave the turn out, or use verl"
            )
