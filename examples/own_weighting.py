r"""A weighting and a measure of your own: a function each, and one line that registers it.

    PYTHONPATH=$PWD/examples VERL_USE_EXTERNAL_MODULES=own_weighting \
        bash scripts/run.sh saw train experiment=quickstart saw.method=lagging_gdpo

The measure is for SAW's own weighting: ``saw.method=saw_gdpo saw.options.informativeness=headroom``. Every process of
the training imports the module, so with several nodes it has to be installed, or on ``PYTHONPATH``, on each of them.
Without verl, import it before ``saw.compute_advantage``.
"""

import torch

import saw


@saw.measure("headroom", needs=["minima", "maxima"])
def headroom(context: saw.Context) -> torch.Tensor:
    """How far the mean is from the maximum, as a share of the range: shape ``(K,)``, or ``(G, K)`` per group.

    NaN for an objective without any reward.
    """
    batch = context.batch
    left = (batch.maxima - context.moments.mean).clamp(min=0.0)  # a reward above its maximum is only reported
    return left / (batch.maxima - batch.minima)


@saw.weighting("lagging_", needs=["minima", "maxima"], reads=["ema", "floor"])
def lagging(context: saw.Context) -> torch.Tensor:
    """More weight for objectives far from their maximum: softmax of :func:`headroom`, shape ``(K,)``, sum 1.

    Registered as ``lagging_grpo`` and ``lagging_gdpo``. They accept the options ``ema`` and ``floor``, which smooth the
    weights; any other option is refused.
    """
    return torch.softmax(4 * headroom(context).nan_to_num(nan=-torch.inf), dim=0)
