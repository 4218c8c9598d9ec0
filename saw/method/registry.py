"""Methods by name. A method is a weighting and an aggregation; each declares what it needs and which options it reads.

To add a weighting or a measure, decorate a function with :func:`weighting` or :func:`measure`; nothing else has to
change. ``docs/extend.md`` shows both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel
from torch import Tensor

from saw.method.aggregation import normalise_then_sum, normalise_then_sum_only, sum_then_normalise
from saw.method.context import Context
from saw.method.options import RELEASED_GRADIENT, SECTIONS, Options
from saw.method.profiles import Profile
from saw.method.returned import check_measured
from saw.method.reward_batch import RewardBatch
from saw.method.smoothing import refuse_smoothing

#: What a caller must pass besides rewards and groups: each objective's minimum or maximum, inner products of the
#: objectives' policy gradients (``gram``), a learning rate, fixed weights, or targets of the mean rewards.
Need = Literal["minima", "maxima", "gradients", "learning_rate", "static_weights", "lagrangian_targets"]
#: Options that every method accepts.
_COMMON = frozenset({"profile", "seed"})
#: Need -> the option that a function with this need reads, declared or not.
_OPTIONS_OF_NEEDS: dict[Need, str] = {
    "learning_rate": "gradient.lr",
    "static_weights": "static_weights",
    "lagrangian_targets": "lagrangian.targets",
}
#: The names by which ``reads`` can declare options.
_READABLE = frozenset(
    (Options.model_fields.keys() - SECTIONS.keys())
    | {f"{section}.{field}" for section, kind in SECTIONS.items() for field in kind.model_fields}
)
#: Options with one value per objective.
_PER_OBJECTIVE = ("lagrangian.targets", "ctwa.targets", "ctwa.enough")
#: What a weighting returns: weights, and what it remembers if it declares that.
Weighed = Tensor | tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Measure:
    """A measure of how much there is still to learn from an objective, see :mod:`saw.method.informativeness`."""

    compute: Callable[[Context], Tensor]
    needs: frozenset[Need]
    reads: frozenset[str]

    def values(self, context: Context) -> Tensor:
        """What it computes, of a checked shape: ``(K,)``, or ``(G, K)`` with ``options.over="group"``."""
        return check_measured(
            self.compute(context), context.statistics.mean, context.batch.groups.number, context.options
        )


@dataclass(frozen=True)
class Weighting:
    """How much each objective counts, see :mod:`saw.method.weighting`.

    Attributes:
        compute (Callable): ``(context) -> weights``, shape ``(K,)`` or ``(G, K)``; with a memory,
            ``(weights, memory)``.
        needs (frozenset[Need]): what the caller must pass.
        reads (frozenset[str]): the options that have an effect; setting any other is an error.
        remembers (frozenset[str]): names of what it keeps from step to step besides its weights, K numbers each.
    """

    compute: Callable[[Context], Weighed]
    needs: frozenset[Need]
    reads: frozenset[str]
    remembers: frozenset[str] = frozenset()

    def weigh(self, context: Context) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weights, and the memory for the next step; neither is checked here."""
        returned = self.compute(context)
        return returned if isinstance(returned, tuple) and self.remembers else (returned, {})  # type: ignore[return-value]


@dataclass(frozen=True)
class Aggregation:
    """How the objectives become one advantage per sample, see :mod:`saw.method.aggregation`.

    Attributes:
        combine (Callable): ``(batch, weights, profile) -> advantages``, shape ``(N,)``.
        takes_penalty (bool): whether the rewards are summed before they are normalised, so that a penalty can be
            subtracted.
        takes_weights (bool): whether a factor on an objective has an effect; without one, priorities are refused.
        linear (Callable | None): the same without whitening, if that is a weighted sum of each objective's own
            advantages. Credit by turn needs it (:mod:`saw.method.turns`).
        whitens (bool): whether ``combine`` whitens the result of ``linear`` over the response tokens.
    """

    combine: Callable[[RewardBatch, Tensor, Profile], Tensor]
    takes_penalty: bool = False
    takes_weights: bool = True
    linear: Callable[[RewardBatch, Tensor, Profile], Tensor] | None = None
    whitens: bool = False


@dataclass(frozen=True)
class Method:
    """A weighting and an aggregation."""

    weighting: Weighting
    aggregation: Aggregation

    def needs(self, options: Options) -> frozenset[Need]:
        """What the caller must pass."""
        return self.weighting.needs | (self._measure(options).needs if self.measures else frozenset())

    def reads(self, options: Options) -> frozenset[str]:
        """The options that have an effect."""
        return _COMMON | self.weighting.reads | (self._measure(options).reads if self.measures else frozenset())

    @property
    def measures(self) -> bool:
        """Whether the weights are computed from a measure, ``options.informativeness``."""
        return "informativeness" in self.weighting.reads

    @staticmethod
    def _measure(options: Options) -> Measure:
        return get_measure(options.informativeness)


WeightFunction = TypeVar("WeightFunction", bound=Callable[[Context], Weighed])
GRPO = Aggregation(sum_then_normalise, takes_penalty=True)
GDPO = Aggregation(normalise_then_sum, linear=normalise_then_sum_only, whitens=True)
METHODS: dict[str, Method] = {}
MEASURES: dict[str, Measure] = {}


def weighting(
    prefix: str,
    *,
    needs: Iterable[Need] = (),
    reads: Iterable[str] = (),
    remembers: Iterable[str] = (),
    aggregations: Mapping[str, Aggregation] = MappingProxyType({"grpo": GRPO, "gdpo": GDPO}),
) -> Callable[[WeightFunction], WeightFunction]:
    """Register a weighting as the methods ``{prefix}grpo`` and ``{prefix}gdpo``.

    Args:
        prefix (str): prefix of the methods' names, such as ``"saw_"``.
        needs (Iterable[Need]): what the caller must pass.
        reads (Iterable[str]): fields of :class:`saw.Options` that have an effect, such as ``"ema"`` or
            ``"gradient.lr"``; setting any other is an error.
        remembers (Iterable[str]): names of what the function keeps from step to step besides the weights. It then
            returns ``(weights, memory)`` and finds the last memory in ``context.memory``; every checkpoint has it.
        aggregations (Mapping[str, Aggregation]): the aggregations, if not those two, by the suffix of the method name.

    Raises:
        ValueError: for an unknown need or option, or a name that is taken or is not an identifier.
        TypeError: for anything but a function.
    """
    declared = _declared(prefix, needs, reads, f"@saw.weighting({prefix!r})")
    wrong = [combine for combine in aggregations.values() if not isinstance(combine, Aggregation)]
    if wrong or not aggregations:
        raise TypeError(f"@saw.weighting({prefix!r}): aggregations is {aggregations!r}; expected names of Aggregations")

    def register(compute: WeightFunction) -> WeightFunction:
        made = Weighting(compute, *declared, frozenset(remembers))
        _add(METHODS, {f"{prefix}{name}": Method(made, combine) for name, combine in aggregations.items()})
        return compute

    return register


def measure(
    name: str, *, needs: Iterable[Need] = (), reads: Iterable[str] = ("over",)
) -> Callable[[Callable[[Context], Tensor]], Callable[[Context], Tensor]]:
    """Register a measure as ``options.informativeness={name}``; arguments and errors as in :func:`weighting`."""
    declared = _declared(name, needs, reads, f"@saw.measure({name!r})")

    def register(compute: Callable[[Context], Tensor]) -> Callable[[Context], Tensor]:
        _add(MEASURES, {name: Measure(compute, *declared)})
        return compute

    return register


def _declared(
    name: str, needs: Iterable[Need], reads: Iterable[str], who: str
) -> tuple[frozenset[Need], frozenset[str]]:
    """The needs and the options of a decorator, checked."""
    if not isinstance(name, str):  # a decorator without parentheses gets the function
        raise TypeError(f"{who}: the name is {name!r}; expected text, in parentheses")
    for argument, given, allowed in (("needs", needs, get_args(Need)), ("reads", reads, sorted(_READABLE))):
        names = [given] if isinstance(given, str) else list(given)
        unknown = [name for name in names if name not in allowed]
        if unknown or isinstance(given, str):
            raise ValueError(f"{who}: {argument} is {given!r}; expected a list with some of {', '.join(allowed)}")
    implied = (option for need, option in _OPTIONS_OF_NEEDS.items() if need in needs)
    return frozenset(needs), frozenset((*reads, *implied))


def _add(registry: dict[str, Any], entries: Mapping[str, Method | Measure]) -> None:
    for name, entry in entries.items():
        if not callable(_function(entry)):
            raise TypeError(f"{name!r} is {_function(entry)!r}; expected a function of a saw.Context")
        if not name.isidentifier():
            raise ValueError(f"the name is {name!r}; expected letters, digits and underscores")
        if name in registry:
            raise ValueError(
                f"{name!r} is already registered, by {_place(registry[name])}, and now by {_place(entry)}; choose "
                "another name, or import the module under one name only"
            )
    registry.update(entries)


def _function(entry: Method | Measure) -> Callable[[Context], Weighed]:
    return entry.weighting.compute if isinstance(entry, Method) else entry.compute


def _place(entry: Method | Measure) -> str:
    function = _function(entry)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"


def get_method(name: str) -> Method:
    """Look up a method by name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    return _get(METHODS, name, "method")


def get_measure(name: str) -> Measure:
    """Look up a measure by name; errors as in :func:`get_method`."""
    return _get(MEASURES, name, "options.informativeness")


def _get(registry: Mapping[str, Any], name: str, what: str) -> Any:
    try:
        return registry[name]
    except (KeyError, TypeError):
        raise ValueError(f"{what} is {name!r}; allowed are {', '.join(registry)}") from None


def check_combination(name: str, options: Options, objectives: int) -> None:
    """Refuse options that the method does not read or that do not fit the number of objectives.

    Args:
        name (str): the method's name.
        options (Options): the user's options.
        objectives (int): number of objectives.

    Raises:
        ValueError: naming the option, its value and the reason.
    """
    method = get_method(name)
    reads, needs = method.reads(options), method.needs(options)
    for option, value in _changed(options):
        if option not in reads:
            raise ValueError(
                f"options.{option} is {value!r}, and {name} does not read it"
                + (f" with informativeness {options.informativeness!r}" if "informativeness" in reads else "")
                + f"; it reads {', '.join(sorted(reads))}"
            )
    if options.over == "group":
        refuse_smoothing(options, "options.over 'group' (weights per group)")
    if "static_weights" in needs:
        weights = options.static_weights
        if weights is None or len(weights) != objectives:
            raise ValueError(f"options.static_weights is {weights}; {name} needs {objectives}, one per objective")
    for option in reads.intersection(_PER_OBJECTIVE):
        section, field = option.split(".")
        values = getattr(getattr(options, section), field)
        if isinstance(values, tuple) and len(values) != objectives:
            raise ValueError(f"options.{option} is {values}; {name} needs {objectives} values, one per objective")
    if "lagrangian_targets" in needs and options.lagrangian.targets is None:
        raise ValueError(
            f"options.lagrangian.targets is not set; {name} needs one value per objective: the mean reward that it "
            "must reach, or null for an objective to maximise"
        )
    if options.floor * objectives > 1:
        raise ValueError(
            f"options.floor is {options.floor}; expected at most 1/{objectives}, for {objectives} objectives"
        )


def check_priorities(name: str, priorities: Sequence[float]) -> None:
    """Refuse priorities in a method in which they would have no effect.

    Raises:
        ValueError: naming the method and the priorities.
    """
    if not get_method(name).aggregation.takes_weights and set(priorities) != {1.0}:
        raise ValueError(
            f"the priorities are {list(priorities)}, and {name} multiplies the rewards, in which a factor has no "
            "effect: leave them at 1"
        )


def _changed(options: Options) -> Iterator[tuple[str, Any]]:
    """The options that differ from their defaults, with their full names.

    Gradient options of the released reading (configs/reading/as_released.yaml) do not count as changed when that
    reading is chosen: it sets them for every method.
    """
    released = options.profile == "released"
    for field, value in _given(options):
        if field not in SECTIONS:
            if value != type(options).model_fields[field].default:
                yield field, value
            continue
        for inner, chosen in _given(value):
            of_the_reading = field == "gradient" and released and chosen == getattr(RELEASED_GRADIENT, inner)
            if not of_the_reading and chosen != type(value).model_fields[inner].default:
                yield f"{field}.{inner}", chosen


def _given(section: BaseModel) -> Iterator[tuple[str, Any]]:
    """The fields that were set, and their values; the others have their defaults, and are many."""
    return (
        (field, getattr(section, field)) for field in type(section).model_fields if field in section.model_fields_set
    )
