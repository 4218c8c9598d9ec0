"""SAW without verl: advantages from a matrix of rewards, in any training loop.

    python examples/plain_torch.py

Needs torch, numpy and pydantic. Two prompts with four responses each; one format reward is missing.
"""

import math

import torch

import saw

objectives = [saw.Objective("correctness", minimum=-3, maximum=3), saw.Objective("format", minimum=0, maximum=1)]
rewards = torch.tensor(
    [[3.0, 0.0], [2.5, 0.0], [3.0, 1.0], [2.0, 0.0], [3.0, 0.0], [3.0, 1.0], [2.5, 0.0], [2.5, math.nan]]
)
prompts = ["a"] * 4 + ["b"] * 4
lengths = torch.tensor([12, 9, 15, 11, 20, 17, 14, 16])  # tokens of each response; or a mask of shape (N, T)

result = saw.compute_advantage(rewards, prompts, lengths, method="saw_gdpo", objectives=objectives)
for objective, weight, cv in zip(objectives, result.weights.tolist(), result.statistics.cv.tolist(), strict=True):
    print(f"{objective.name}: CV {cv:.2f}, weight {weight:.2f}")
print("advantages:", [round(value, 2) for value in result.samples.tolist()])
