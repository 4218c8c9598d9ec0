"""SAW in ms-swift: a plug-in file that replaces its advantages.

    swift rlhf --rlhf_type grpo --external_plugins examples/swift_plugin.py --reward_funcs correctness format ...

ms-swift computes all advantages with one function of the rewards; this file puts another in its place. Change the
three constants to yours. The objectives are in the order of ``--reward_funcs``, and ``--reward_weights`` are their
priorities. The function gets no lengths, so the batch is whitened over samples; and it keeps nothing between steps.
"""

from dataclasses import replace

import torch
from swift.rlhf_trainers import grpo_trainer

import saw
from saw.method.demands import refuse_gradients, refuse_memory, refuse_turns

METHOD = "saw_gdpo"
OBJECTIVES = [saw.Objective("correctness", minimum=-3, maximum=3), saw.Objective("format", minimum=0, maximum=1)]
OPTIONS = saw.Options(profile={"whitening": "samples"})


def compute_advantages(
    rewards_per_func,
    reward_weights,
    num_generations,
    advantage_estimator="grpo",
    scale_rewards="group",
    kl_in_reward=False,
    beta=0.0,
    kl_values=None,
):
    """The advantages, and the weighted sum of the rewards for the log: shape ``(N,)`` each.

    Rewards have shape ``(N, K)``, NaN where missing; every ``num_generations`` rows answer one prompt.
    """
    if advantage_estimator != "grpo":
        raise ValueError(f"--advantage_estimator is {advantage_estimator!r}; the method replaces it: leave it at grpo")
    if kl_in_reward and beta:
        raise ValueError("--kl_in_reward is true; set it to false: the KL term then stays in the loss")
    refuse_gradients(METHOD, OPTIONS, "ms-swift")
    refuse_memory(METHOD, OPTIONS, "ms-swift")
    refuse_turns(OBJECTIVES, "ms-swift")
    weights = reward_weights.tolist()
    result = saw.compute_advantage(
        rewards_per_func.cpu(),
        torch.arange(len(rewards_per_func)) // num_generations,
        torch.ones(len(rewards_per_func)),
        method=METHOD,
        objectives=[replace(one, priority=weight) for one, weight in zip(OBJECTIVES, weights, strict=True)],
        options=OPTIONS,
    )
    return result.samples.to(rewards_per_func), (rewards_per_func * reward_weights).nansum(dim=1)


def refuse(*_, **__):
    """Multi-turn training with several samples per request uses another function, which this file does not replace."""
    raise ValueError("a request has a varying number of samples; SAW's plug-in file for ms-swift does not handle that")


grpo_trainer.compute_advantages = compute_advantages
grpo_trainer.compute_advantages_dynamic = refuse
