"""Conditional rewards: an objective counts only where others reach a threshold. An option of the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saw.method.objective import Objective


def condition(rewards: Tensor, objectives: Sequence[Objective]) -> Tensor:
    r"""Replace the rewards whose condition does not hold.

    .. math:: \tilde r_{jk} = r_{jk} \text{ if } r_{jl} \ge t_{kl} \text{ for every } l \text{ that } k
              \text{ requires, else } min_k \text{ or missing}

    The minimum is GDPO's rule (arXiv 2601.05242; its rewards start at 0), and missing with ``mo_grpo`` is PAPO
    (arXiv 2603.26535): a process reward normalised among the correct responses only. Where a required reward is
    missing, the condition is unknown, so that the objective is missing too. Conditions compare the rewards as given,
    so they can form a chain in any order.

    Args:
        rewards (Tensor): shape ``(N, K)``, NaN where missing.
        objectives (Sequence[Objective]): K of them.

    Returns:
        Tensor: shape ``(N, K)``; the same tensor if there are no conditions.
    """
    if not any(objective.requires for objective in objectives):
        return rewards
    columns = {objective.name: k for k, objective in enumerate(objectives)}
    given = rewards if rewards.is_floating_point() else rewards.double()
    conditional = given.clone()
    for k, objective in enumerate(objectives):
        for name, threshold in (objective.requires or {}).items():
            required = given[:, columns[name]]
            if objective.otherwise == "minimum":
                low = torch.full_like(required, float(objective.range[0]))
                # Where the reward itself is missing, it stays missing.
                conditional[:, k] = torch.where((required < threshold) & ~given[:, k].isnan(), low, conditional[:, k])
                conditional[:, k].masked_fill_(required.isnan(), torch.nan)
            else:
                conditional[:, k].masked_fill_(~(required >= threshold), torch.nan)
    return conditional


def check_conditions(
    requires: Mapping[str, Mapping[str, float] | None], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Check that conditions name objectives, and that each can be met and missed.

    Args:
        requires (Mapping): what each objective requires.
        ranges (Mapping): minimum and maximum of every objective; NaN or infinite if unknown.

    Raises:
        ValueError: naming the objective, the threshold and the range.
    """
    for name, thresholds in requires.items():
        for other, threshold in (thresholds or {}).items():
            who = f"{name!r} requires {other!r} to reach {threshold:g}"
            if other not in ranges:
                raise ValueError(f"{who}, and there is no such objective; the objectives are {', '.join(ranges)}")
            low, high = ranges[other]
            if threshold > high:
                raise ValueError(f"{who}, above its maximum {high:g}: {name!r} would never count")
            if threshold <= low:
                raise ValueError(f"{who}, which its minimum {low:g} does: the condition would always hold")
