"""SAW: stage-aware dynamic weighting for multi-objective reinforcement learning (arXiv 2606.07705).

The method is pure torch and imports neither verl nor ray; :mod:`saw.verl` plugs it into verl.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saw.method.advantage import Advantage, compute_advantage, objective_advantages
    from saw.method.context import Context
    from saw.method.objective import Objective
    from saw.method.options import GradientOptions, Options
    from saw.method.profiles import PROFILES, Profile
    from saw.method.registry import METHODS, Method, measure, weighting
    from saw.method.statistics import ObjectiveStatistics
    from saw.method.turns import turns_of

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "PROFILES",
    "Advantage",
    "Context",
    "GradientOptions",
    "Method",
    "Objective",
    "ObjectiveStatistics",
    "Options",
    "Profile",
    "compute_advantage",
    "measure",
    "objective_advantages",
    "turns_of",
    "weighting",
]
#: Name -> its module, loaded on first use: code that only reads a run's files needs no torch.
_MODULES = {
    **dict.fromkeys(("Advantage", "compute_advantage", "objective_advantages"), "saw.method.advantage"),
    **dict.fromkeys(("METHODS", "Method", "measure", "weighting"), "saw.method.registry"),
    **dict.fromkeys(("GradientOptions", "Options"), "saw.method.options"),
    **dict.fromkeys(("PROFILES", "Profile"), "saw.method.profiles"),
    "Context": "saw.method.context",
    "Objective": "saw.method.objective",
    "ObjectiveStatistics": "saw.method.statistics",
    "turns_of": "saw.method.turns",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "saw needs torch 2.6 or newer, and none is installed; install the build for your driver (torch is no "
            "dependency of saw, so that pip never replaces it)",
            name="torch",
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
