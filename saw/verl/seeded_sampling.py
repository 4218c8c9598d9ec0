"""A seed for every request to vLLM, so that a training's seed fixes its samples and not only its data order.

vLLM draws all samples of a batch from one generator. Which request gets which random number depends on the order in
which they arrive, so two trainings with the same seed differ from the first step on. Each request of
``actor_rollout_ref.rollout.agent.default_agent_loop=seeded_single_turn_agent`` has its own generator. Its seed is
computed from ``data.seed``, the step, the question, its row's ``extra_info.index`` (data may ask a question twice) and
the sample's number. Trainings of several methods with the same seed then also share their random numbers, which
makes paired comparisons sharper.

Different batches still round differently, so a sample may differ now and then. On a GPU, vLLM fills the noise of each
request separately, which takes longer. On a CPU, vLLM ends with "CPU Generator does not use offset" if it splits the
prompt of such a request, so ``enable_chunked_prefill`` has to be off. What is needed is checked before Ray starts
(:mod:`saw.verl.config_checks`, :mod:`saw.runs.inputs`). Contract: ``tests/contract/test_seeded_sampling.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class SeededSingleTurn(SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's single-turn agent loop with a seed in each request."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Generate one response; arguments and result as in the base class."""
        where = kwargs["global_steps"], kwargs["index"], kwargs["session_id"]
        seed = request_seed(self.config.data.seed, kwargs["raw_prompt"], *where)
        return await super().run({**sampling_params, "seed": seed}, priority, **kwargs)


def request_seed(seed: int, messages: Sequence[Mapping[str, Any]], step: int, row: Any, sample: int) -> int:
    """The seed of one request, in [0, 2**63): a hash of what identifies it.

    Args:
        seed (int): ``data.seed``.
        messages (Sequence[Mapping]): the prompt.
        step (int): verl's global step; 0 for the validation before a training.
        row (Any): ``extra_info.index`` of the prompt's row.
        sample (int): the number of the sample among those of its prompt, from 0.

    Raises:
        TypeError: for content that is neither JSON nor has bytes, as images and arrays do.
    """
    identity = json.dumps([seed, list(messages), int(step), str(row), int(sample)], sort_keys=True, default=_digest)
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1


def _digest(content: Any) -> str:
    if not hasattr(content, "tobytes"):
        raise TypeError(f"a message has {type(content).__name__}, from which no seed can be computed")
    return hashlib.blake2b(content.tobytes()).hexdigest()
