"""The method in pure torch: rewards of several objectives in, one advantage per token out.

It imports none of verl, Ray and Hydra. Suggested reading order: :mod:`~saw.method.advantage` is the public function;
:mod:`~saw.method.weighting` computes the weight of each objective from a measure in
:mod:`~saw.method.informativeness`; :mod:`~saw.method.aggregation` turns weighted rewards into advantages;
:mod:`~saw.method.registry` names each pair of a weighting and an aggregation.
"""

from saw.method import informativeness, weighting  # noqa: F401  importing registers them
