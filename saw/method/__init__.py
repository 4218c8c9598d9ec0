"""The method in pure torch: rewards of several objectives in, one advantage per token out.

It knows nothing of verl, Ray or Hydra. Read in this order: :mod:`~saw.method.advantage` is the public function;
:mod:`~saw.method.weighting` says how much each objective counts, by a measure in
:mod:`~saw.method.informativeness`; :mod:`~saw.method.aggregation` turns weighted rewards into advantages;
:mod:`~saw.method.registry` names the pairs.
"""

from saw.method import informativeness, weighting  # noqa: F401  they register themselves
