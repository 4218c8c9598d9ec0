"""Statistics over the last batches, or an average of the weights: what helps SAW with a small batch?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.study.tabular_parts import BASE, Part, columns, exact_weights, show, steps_to
from recipes.study.tabular_world import Rule, Trajectories, learn
from saw.report.seed_statistics import bootstrap_mean
from saw.report.tables import markdown

PROMPTS = (2, 4, 8, 16, 32)
#: What the weights come from. A moving average with e has about the memory of (1 + e) / (1 - e) batches.
BATCH, EMAS = "this batch", {"last 4 batches": "ema 0.5", "last 16 batches": "ema 0.9"}
SOURCES: dict[str, dict] = {
    BATCH: {},
    "last 4 batches": {"window": 4},
    "ema 0.5": {"options": {"ema": 0.5}},
    "last 16 batches": {"window": 16},
    "ema 0.9": {"options": {"ema": 0.9}},
}


def window(seeds: int, out: Path) -> Part:
    """Error of the weights, steps and final reward by the source of the weights, paired by seed."""
    rows, lines = [], []
    for prompts in PROMPTS:
        world = replace(BASE, prompts=prompts)
        for family in ("grpo", "gdpo"):
            found = {source: learn(world, Rule(f"saw_{family}", **how), seeds) for source, how in SOURCES.items()}
            found = {"equal weights": learn(world, Rule(family), seeds)} | found
            both = {source: _both(each) for source, each in found.items()}
            for source, each in found.items():
                row: dict = {"prompts": prompts, "family": family, "source": source, "seeds": seeds}
                row["weight_error"] = weight_error(each) if source in SOURCES else None
                values: dict[str, np.ndarray | None] = {
                    "early_steps": steps_to(each, 0),
                    "late_steps": steps_to(each, 1),
                    "both_less_batch": None if source == BATCH else both[source] - both[BATCH],
                    "both_less_ema": both[source] - both[EMAS[source]] if source in EMAS else None,
                    "final_reward": mean_reward(each.right[:, -1]).numpy(),
                }
                cells = []
                for name, value in values.items():
                    interval = None if value is None else bootstrap_mean(value)
                    row |= columns(name, interval) if interval else dict.fromkeys((name, f"{name}_low", f"{name}_high"))
                    cells.append(show(interval, 4 if name == "final_reward" else 1) if interval else "")
                rows.append(row)
                error = "" if row["weight_error"] is None else f"{row['weight_error']:.3f}"
                lines.append([str(prompts), family, source, error, *cells])
    header = ["prompts", "family", "weights from", "error of the weights", "early: steps", "late: steps"]
    header += ["both: steps, minus this batch's", "both: steps, minus those of the EMA", "final reward"]
    text = (
        "Weights of SAW from the mean and the deviation of all samples of the last 4 or 16 batches, or from this "
        "batch, with `ema` 0.5 or 0.9 or without. The advantages are always of this batch. "
        f"{BASE.rollouts} samples per prompt. Error: root mean square difference from the weights for an infinite "
        "batch, over all steps and seeds. Final reward: the policy's expected reward after the last step, mean over "
        f"the objectives. Differences are paired by seed: 4 batches minus {EMAS['last 4 batches']}, 16 minus "
        f"{EMAS['last 16 batches']}, which remember about as long."
    )
    return Part(rows, markdown(header, lines, left=3), text)


def weight_error(found: Trajectories) -> float:
    """Root mean square difference from the weights for an infinite batch of the same policy."""
    return float((found.weights - exact_weights(BASE, found.right[:, :-1])).square().mean().sqrt())


def mean_reward(right: Tensor) -> Tensor:
    """Expected reward, mean over the objectives: shape ``(...)`` of ``(..., K)``."""
    of_right = torch.tensor([1 - objective.noise / 2 for objective in BASE.objectives], dtype=right.dtype)
    return (right * of_right).mean(dim=-1)


def _both(found: Trajectories) -> np.ndarray:
    """Steps until both objectives are learned, one per seed."""
    return np.maximum(steps_to(found, 0), steps_to(found, 1))
