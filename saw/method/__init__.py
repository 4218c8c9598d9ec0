"""The method in pure torch: rewards of several objectives in, one advantage per token out.

It imports none of verl, Ray and Hydra. Suggested reading order: :mod:`~saw.method.advantage` is the public function;
:mod:`~saw.method.weighting` computes the weight of each objective from a measure in
:mod:`~saw.method.informativeness`; :mod:`~saw.method.aggregation` turns weighted rewards into advantages; the methods
of other papers are in :mod:`~saw.method.adaptive`, :mod:`~saw.method.conflicts`, :mod:`~saw.method.correlation`,
:mod:`~saw.method.multi_gradient` and :mod:`~saw.method.scalarisation`;
:mod:`~saw.method.registry` names each pair of a weighting and an aggregation.
"""

from saw.method import (  # noqa: F401  importing registers them
    adaptive,
    conflicts,
    correlation,
    informativeness,
    multi_gradient,
    scalarisation,
    weighting,
)
