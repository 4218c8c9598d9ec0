"""A seed for every request to vLLM, so that a training's seed fixes its samples and not only its data order.

vLLM draws all samples of a batch from one generator. Which request gets which random number depends on the order in
which they arrive, so two trainings with the same seed differ from their first step on. With
``actor_rollout_ref.rollout.agent.default_agent_loop=seeded_single_turn_agent``, each request has its own generator,
whose seed is computed from ``data.seed``, the step, the question and the sample's number. Trainings of several methods
with the same seed then also share their random numbers, which makes paired comparisons sharper.

Different batches still round differently, so a sample may differ now and then. On a GPU, vLLM fills the noise of each
request separately, which takes longer. Contract: ``tests/contract/test_seeded_sampling.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class SeededSingleTurn(SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's single-turn agent loop with a seed in each request."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Generate one response; arguments and result as in the base class."""
        seed = request_seed(self.config.data.seed, kwargs["global_steps"], kwargs["raw_prompt"], kwargs["session_id"])
        return await super().run({**sampling_params, "seed": seed}, priority, **kwargs)


def request_seed(seed: int | None, step: int, messages: Sequence[Mapping[str, Any]], sample: int) -> int:
    """The seed of one request, in [0, 2**63): a hash of what identifies it.

    Args:
        seed (int | None): ``data.seed``.
        step (int): verl's global step; 0 for the validation before a training.
        messages (Sequence[Mapping]): the prompt.
        sample (int): the number of the sample among those of its prompt, from 0.
    """
    identity = repr((seed, int(step), [sorted(message.items()) for message in messages], int(sample)))
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1
