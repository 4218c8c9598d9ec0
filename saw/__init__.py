"""SAW: stage-aware dynamic weighting for multi-objective reinforcement learning (arXiv 2606.07705).

The method is pure torch and imports neither verl nor ray; :mod:`saw.verl` plugs it into verl.
"""

from saw.advantage import Advantage, compute_advantage, objective_advantages
from saw.methods import METHODS, Method
from saw.options import GradientOptions, Options
from saw.statistics import ObjectiveStatistics

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Advantage",
    "GradientOptions",
    "Method",
    "ObjectiveStatistics",
    "Options",
    "compute_advantage",
    "objective_advantages",
]
