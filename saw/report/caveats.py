"""Warnings that a reader of a run should see before trusting its curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from saw.report.history import LoggedRun

#: Warn when a weight stays below LOW or above HIGH for ROW consecutive steps.
LOW, HIGH, ROW = 0.01, 0.99, 10
#: Relative standard error of the CV above which the weights are mostly noise.
NOISY_CV = 0.2
#: Mean difference between the probabilities of sampled tokens in vLLM and in the trainer; rounding alone gives 0.01.
OTHER_WEIGHTS = 0.05
#: How far a float32 reward may exceed its range by rounding.
ROUNDING = 1e-6


def warnings_of(run: LoggedRun) -> list[str]:
    """Warnings for one run, in words."""
    return [*_other_weights(run), *_broken_samples(run)] + [
        text
        for objective in run.history.objectives
        for text in (
            *_stuck_weight(run, objective),
            *_no_spread(run, objective),
            *_missing(run, objective),
            *_noisy_cv(run, objective),
            *_outside(run, objective),
        )
    ]


def _other_weights(run: LoggedRun) -> list[str]:
    differences = run.history.columns.get("training/rollout_probs_diff_mean")
    if differences is None:
        return []
    steps = [step for step, value in zip(run.history.steps, differences, strict=True) if value > OTHER_WEIGHTS]
    if not steps:
        return []
    return [
        f"vLLM's probabilities of sampled tokens differ from the trainer's by more than {OTHER_WEIGHTS:g} on average "
        f"in {len(steps)} steps, first {steps[0]}: vLLM may not have the trainer's weights"
    ]


def _broken_samples(run: LoggedRun) -> list[str]:
    lines = run.broken_samples()
    return [f"val_samples.jsonl has no sample in {len(lines)} lines, first {lines[0]}"] if lines else []


def _stuck_weight(run: LoggedRun, objective: str) -> list[str]:
    if len(run.history.objectives) < 2:
        return []
    weights = run.history.columns.get(f"saw/{objective}/weight", ())
    at = {"0": [weight <= LOW for weight in weights], "1": [weight >= HIGH for weight in weights]}
    rows = {where: _row_of_steps(run, flags) for where, flags in at.items()}
    return [f"the weight of {objective} is at {where} for {row}" for where, row in rows.items() if row]


def _no_spread(run: LoggedRun, objective: str) -> list[str]:
    shares = run.history.columns.get(f"saw/{objective}/zero_spread", ())
    row = _row_of_steps(run, [share == 1.0 for share in shares])
    return [f"no group had spread in {objective} for {row}: nothing is learned from it"] if row else []


def _missing(run: LoggedRun, objective: str) -> list[str]:
    means = run.history.of(objective, "mean")
    absent = [step for step, mean in zip(run.history.steps, means, strict=True) if math.isnan(mean)]
    if len(absent) == len(means):
        return [f"{objective} is missing for every sample of every step"]
    return [f"{objective} is missing for every sample of {len(absent)} steps, first {absent[0]}"] if absent else []


def _noisy_cv(run: LoggedRun, objective: str) -> list[str]:
    """The delta method's error for N independent normal rewards: a lower bound, as a prompt's samples are dependent."""
    prompts = run.config.get("data.train_batch_size")
    rollouts = run.config.get("actor_rollout_ref.rollout.n")
    cv = np.asarray(run.history.columns.get(f"saw/{objective}/cv", ()), dtype=float)
    cv = cv[np.isfinite(cv)]
    if not prompts or not rollouts or not len(cv):
        return []
    n = prompts * rollouts
    error = math.sqrt(1 / (2 * (n - 1)) + float(np.median(cv)) ** 2 / n) if n > 1 else math.inf
    if error <= NOISY_CV:
        return []
    return [
        f"the CV of {objective} is uncertain by {error:.0%} or more with {n} samples per step; "
        "its weights are largely noise"
    ]


def _outside(run: LoggedRun, objective: str) -> list[str]:
    low, high = run.info.get("ranges", {}).get(objective, (None, None))
    found = []
    sides = (("min", low, -1, "below its stated minimum"), ("max", high, 1, "above its stated maximum"))
    for what, bound, sign, side in sides:
        if bound is None:
            continue
        values = np.asarray(run.history.columns.get(f"saw/{objective}/{what}", ()), dtype=float)
        beyond = np.flatnonzero(sign * (values - bound) > ROUNDING)
        if len(beyond):
            found.append(f"{objective} was {side} {bound:g}, first at step {run.history.steps[beyond[0]]}")
    return found


def _row_of_steps(run: LoggedRun, flags: Sequence[bool]) -> str:
    """The longest stretch of flagged steps, in words; empty if it is shorter than :data:`ROW`."""
    length, end = _longest(flags)
    if length < ROW:
        return ""
    return f"{length} steps in a row ({run.history.steps[end - length]} to {run.history.steps[end - 1]})"


def _longest(flags: Sequence[bool]) -> tuple[int, int]:
    """Length of the longest stretch of True, and the index after its end."""
    best = run = end = 0
    for place, flag in enumerate(flags, start=1):
        run = run + 1 if flag else 0
        if run > best:
            best, end = run, place
    return best, end
