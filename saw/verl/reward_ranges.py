"""The range of each objective at every step, from the configuration and the reward function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.utils.import_utils import load_extern_object

from saw.method.conditions import check_conditions
from saw.method.objective import LARGEST
from saw.method.registry import get_method
from saw.verl.config import ConfigError, Settings
from saw.verl.names import KWARGS

#: Precisions in which reward functions and reward models compute.
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
#: Relative error of the coarsest of them, bfloat16.
ROUNDING = 2.0**-8


def exact_minima(rewards: Tensor, minima: Tensor) -> Tensor:
    """Replace rewards that are below their minimum only because they were computed in a lower precision.

    A reward of 0.7 from a float32 tensor is 0.69999999 as a Python number, which would count as below 0.7.

    Args:
        rewards (Tensor): any shape, float64, NaN where missing.
        minima (Tensor): of a shape that broadcasts, float64; -inf if unknown.
    """
    for precision in PRECISIONS:
        rounded = minima.to(precision).double()
        is_close = (rounded - minima).abs() <= ROUNDING * minima.abs()  # not if it overflows or becomes 0
        rewards = torch.where((rewards == rounded) & (rewards < minima) & is_close, minima, rewards)
    return rewards


@dataclass(frozen=True)
class RewardRanges:
    """The range of each objective at every training step.

    The configuration comes first; the rest is taken from the reward function, which may declare bounds that follow a
    schedule (:func:`saw.rewards.returns`).

    Attributes:
        settings (Settings): the section ``saw``.
        function (Any): the unwrapped reward function; None if there is none.
        kwargs (Mapping): the arguments that verl passes it besides a sample.
    """

    settings: Settings
    function: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig, settings: Settings) -> RewardRanges:
        """Load the reward function of verl's configuration.

        Raises:
            ConfigError: if it can't be loaded.
        """
        custom = config.reward.custom_reward_function
        function = None
        if custom.path is not None:
            try:
                function = load_extern_object(module_path=custom.path, object_name=custom.name)
            except (ImportError, OSError, AttributeError, RuntimeError, TypeError) as error:
                why = f"{error}: {error.__cause__!r}" if error.__cause__ else str(error)
                raise ConfigError(
                    f"reward.custom_reward_function.path is {custom.path!r} and its name is {custom.name!r} ({why}); "
                    "expected a Python file, or pkg://MODULE, and the name of a function in it"
                ) from error
            if not callable(function):
                raise ConfigError(
                    f"reward.custom_reward_function.name is {custom.name!r}, which is {function!r} in {custom.path}; "
                    "expected a function"
                )
        kwargs = custom.get("reward_kwargs", {})
        plain: Any = OmegaConf.to_container(kwargs, resolve=True) if isinstance(kwargs, DictConfig) else kwargs
        if not isinstance(plain, Mapping):
            raise ConfigError(f"{KWARGS} is {plain!r}; expected a mapping from argument to value, such as {{}}")
        return cls(settings, function, dict(plain))

    def at(self, step: int) -> list[tuple[float, float]]:
        """Smallest and largest possible value of each objective at a training step.

        Args:
            step (int): verl's global step.

        Returns:
            list[tuple[float, float]]: one (min, max) per objective; max is inf if unknown, min is -inf for a running
            minimum.

        Raises:
            ConfigError: if an objective's minimum is not stated, or a minimum is above the maximum.
        """
        declared = self.declared(step)
        ranges = []
        for objective in self.settings.objectives:
            low, high = declared.get(objective.name, (None, math.inf))
            if objective.minimum == "running":
                low = -math.inf
            elif objective.minimum is not None:
                low = objective.minimum
            if low is None:
                raise ConfigError(
                    f"saw.objectives.{objective.name}.minimum is not set, and the reward function declares no bounds "
                    "for it; set it to the lowest value that the reward can take"
                )
            high = high if objective.maximum is None else objective.maximum
            is_running = objective.minimum == "running"
            too_large = any(abs(bound) > LARGEST and math.isfinite(bound) for bound in (low, high))
            if not low <= high or (math.isinf(low) and not is_running) or too_large:
                raise ConfigError(
                    f"the rewards of {objective.name!r} range from {low:g} to {high:g} at step {step}; expected a "
                    f"finite minimum that is at most the maximum, and at most {LARGEST:g} in size: see "
                    f"saw.objectives.{objective.name}.minimum and maximum, and the bounds that the reward function "
                    f"declares with {KWARGS}"
                )
            ranges.append((low, high))
        try:
            check_conditions(self.settings.conditions, dict(zip(self.settings.names, ranges, strict=True)))
        except ValueError as error:
            raise ConfigError(f"saw.objectives, at step {step}: {error}") from None
        method = get_method(self.settings.method)
        if "maxima" in method.needs(self.settings.options):
            for objective, (low, high) in zip(self.settings.objectives, ranges, strict=True):
                if math.isinf(high) or math.isinf(low) or high == low:
                    measure = f"saw.options.informativeness is {self.settings.options.informativeness!r}"
                    raise ConfigError(
                        f"{measure if method.measures else f'saw.method is {self.settings.method!r}'}, which needs the "
                        f"range of {objective.name!r}; set saw.objectives.{objective.name}.minimum and maximum"
                    )
        return ranges

    def over(self, steps: Iterable[int]) -> list[tuple[float, float]]:
        """Smallest and largest possible value of each objective over several training steps, see :meth:`at`."""
        pairs = zip(*(self.at(step) for step in sorted(set(steps))), strict=True)
        return [(min(low for low, _ in each), max(high for _, high in each)) for each in pairs]

    def declared(self, step: int) -> dict[str, tuple[float, float]]:
        """The ranges that the reward function declares at a step; empty if it declares none.

        Raises:
            ConfigError: if they are not pairs of numbers, or the function cannot be called as configured.
        """
        declare = getattr(self.function, "bounds", None)
        if declare is None:
            return {}
        check_arguments(declare, {"step": step}, self.kwargs, "the function of the rewards' bounds")
        try:
            bounds = declare(step, **self.kwargs)
        except Exception as error:  # whatever the user's function raises, raised again with a note
            error.add_note(f"raised by the function of the rewards' bounds, for step {step}")
            raise
        try:
            return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"the reward function's bounds are {bounds!r}; expected a pair of numbers per objective"
            ) from None


def check_arguments(
    function: Callable[..., Any], own: Mapping[str, Any], configured: Mapping[str, Any], what: str
) -> None:
    """Check that a function accepts the arguments that it will be called with.

    Args:
        function (Callable): the function.
        own (Mapping): the arguments that it always gets.
        configured (Mapping): the arguments that the configuration adds.
        what (str): the function's name in messages.

    Raises:
        ConfigError: naming the setting that it does not accept, that it lacks, or that replaces one it always gets.
    """
    for name in own.keys() & configured.keys():
        raise ConfigError(
            f"{KWARGS}.{name} is {configured[name]!r}, but {what} gets {name} from the training: remove it"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # not written in Python
    try:
        signature.bind(**{**own, **configured})
    except TypeError as error:
        unknown = [
            f"{KWARGS}.{name} is {configured[name]!r}" for name in configured if name not in signature.parameters
        ]
        raise ConfigError(
            f"{', '.join(unknown) or f'{KWARGS} is {dict(configured)!r}'}, but {what} cannot be called like that: "
            f"{error}; it takes {signature}, and gets {', '.join({**own, **configured})}"
        ) from None
