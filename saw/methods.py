"""The registry of methods: each is a weighting and an aggregation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from saw import aggregation, informativeness, weighting
from saw.batch import RewardBatch
from saw.options import RELEASED_GRADIENT, GradientOptions, Options, Profile
from saw.weighting import Context

Weighting = Callable[[Context], Tensor]
Aggregation = Callable[[RewardBatch, Tensor, Profile], Tensor]


@dataclass(frozen=True)
class Method:
    """A named pair.

    Attributes:
        weighting (Weighting): how much each objective counts.
        aggregation (Aggregation): how the objectives become one advantage.
    """

    weighting: Weighting
    aggregation: Aggregation

    @property
    def combines_rewards(self) -> bool:
        """Whether the rewards are summed before they are normalised, so that a penalty can be taken off."""
        return self.aggregation is aggregation.sum_then_normalise

    def needs_minima(self, options: Options) -> bool:
        """Whether the weighting measures from each objective's minimum."""
        return self.weighting is weighting.stage_aware and options.informativeness in informativeness.NEED_MINIMA

    @property
    def ascends(self) -> bool:
        """Whether the weights climb by mirror ascent, which has a learning rate."""
        return self.weighting is weighting.gradient

    def needs_gradients(self, options: Options) -> bool:
        """Whether the weighting compares the objectives' policy gradients."""
        measures = self.weighting is weighting.stage_aware and options.informativeness == "gradient_norm"
        return measures or self.ascends

    def needs_maxima(self, options: Options) -> bool:
        """Whether the weighting needs each objective's maximum."""
        return self.weighting is weighting.stage_aware and options.informativeness in informativeness.NEED_MAXIMA


_WEIGHTINGS = {
    "": weighting.equal,
    "saw_": weighting.stage_aware,
    "random_": weighting.random,
    "static_": weighting.static,
    "gradient_": weighting.gradient,
}
_AGGREGATIONS = {"grpo": aggregation.sum_then_normalise, "gdpo": aggregation.normalise_then_sum}

METHODS: dict[str, Method] = {
    **{
        f"{prefix}{name}": Method(weigh, aggregate)
        for prefix, weigh in _WEIGHTINGS.items()
        for name, aggregate in _AGGREGATIONS.items()
    },
    "mo_grpo": Method(weighting.equal, aggregation.normalise_then_sum_only),
    "dvao": Method(weighting.group_std, aggregation.normalise_then_average),
}


def get_method(name: str) -> Method:
    """Look a method up by its name.

    Raises:
        ValueError: for a name that is not registered; the message lists those that are.
    """
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        raise ValueError(f"method is {name!r}; allowed are {', '.join(METHODS)}") from None


def check_combination(name: str, options: Options, objectives: int) -> None:
    """Refuse options that the method would ignore, or that make no sense together.

    Args:
        name (str): of the method.
        options (Options): the user's.
        objectives (int): how many there are.

    Raises:
        ValueError: naming the option, its value and the reason.
    """
    method = get_method(name)
    given = options.model_fields_set
    if method.weighting is not weighting.stage_aware:
        for option in ("informativeness", "over"):
            if option in given and getattr(options, option) != Options.model_fields[option].default:
                raise ValueError(f"options.{option} is {getattr(options, option)!r}, and {name} does not measure it")
    for field, value in options.gradient:
        used = method.ascends or (field in ("layers", "reduction") and method.needs_gradients(options))
        of_the_reading = options.profile == "released" and value == getattr(RELEASED_GRADIENT, field)
        if not used and not of_the_reading and value != GradientOptions.model_fields[field].default:
            raise ValueError(f"options.gradient.{field} is {value!r}, and {name} does not use it")
    if method.needs_gradients(options) and options.over == "group":
        raise ValueError("options.over is 'group', and a policy gradient belongs to the whole batch")
    is_static = method.weighting is weighting.static
    if is_static and options.static_weights is None:
        raise ValueError(f"options.static_weights is not set, and {name} needs {objectives} of them")
    if options.static_weights is not None:
        weights = options.static_weights
        if not is_static:
            raise ValueError(
                f"options.static_weights is {weights}, and {name} does not use them; use static_grpo or static_gdpo"
            )
        if len(weights) != objectives:
            raise ValueError(f"options.static_weights is {weights}; expected {objectives}, one for each objective")
        if sum(weights) <= 0:
            raise ValueError(f"options.static_weights is {weights}; expected one above 0")
    steadied = [option for option in ("ema", "floor", "max_change", "log_only") if getattr(options, option)]
    fixed = method.weighting in (weighting.equal, weighting.static)
    by_group = method.weighting is weighting.group_std or options.over == "group"
    if steadied and (fixed or by_group):
        reason = "its weights never change" if fixed else "each group has weights of its own"
        raise ValueError(f"options.{steadied[0]} is {getattr(options, steadied[0])}, and with {name} {reason}")
    if options.floor * objectives > 1:
        raise ValueError(
            f"options.floor is {options.floor}; expected at most 1/{objectives}, for {objectives} objectives"
        )
    if method.ascends and options.log_only:
        raise ValueError(f"options.log_only is True, and the weights of {name} start from those that were used")
    others = [option for option in steadied if option != "log_only"]
    if options.log_only and others:
        raise ValueError(f"options.{others[0]} is {getattr(options, others[0])}, and log_only uses equal weights")
