"""The LLM judge as a Ray actor, one per node, shared by that node's reward workers.

verl's reward workers are several processes. This one actor keeps the limits of a node (requests in flight, requests per
minute, no question paid twice). It is an asyncio process; the reward workers wait for it without blocking each other.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saw.rewards.judge import Judge, JudgeOptions, Verdict, prompt
from saw.rewards.judge.cache import Cache
from saw.rewards.judge.options import JudgeError

logger = logging.getLogger(__name__)

#: Questions that may wait in the actor; the limit on requests is the judge's own.
WAITING = 100_000


class JudgeWorker:
    """The process that calls the judge."""

    def __init__(self, options: dict[str, Any]):
        # Ray's message for an actor that fails to start repeats the exception, so this must never hold the key
        self.judge = Judge(JudgeOptions.of(options))

    async def score(self, fields: dict[str, str]) -> Verdict:
        """See :meth:`saw.rewards.judge.Judge.score`."""
        return await self.judge.score(fields)


@functools.cache
def _worker(options: str) -> Any:
    """This node's worker for a judge, started by the first call."""
    node = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(JudgeWorker)
        .options(
            name=f"saw_judge_{node}_{Cache.question(options)[:16]}",
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=WAITING,
            max_restarts=-1,
            max_task_retries=-1,  # retries are not paid again: answers are cached
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(json.loads(options))
    )


async def ask(options: JudgeOptions, fields: dict[str, str]) -> Verdict:
    """Ask this node's judge; the verdict is missing if the actor cannot start, for example without an API key.

    verl would treat an exception as a failed rollout; a missing reward is counted, and too many stop the training.
    """
    try:
        return await _worker(options.model_dump_json()).score.remote(fields)
    except ray.exceptions.RayActorError as error:
        _worker.cache_clear()  # the next question starts another actor
        logger.error("the judge's process on this node ended: %s", error)
        return Verdict(dict.fromkeys(options.objectives, math.nan), fault="the judge's process ended")


def options_of(section: Mapping[str, Any] | None, router: str | None) -> JudgeOptions:
    """The options; without an address, the judge is the one that verl serves, behind its router.

    Args:
        section (Mapping | None): the configuration.
        router (str | None): ``host:port`` of verl's router, if ``reward.reward_model`` is on.
    """
    plain: Any = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section
    options = JudgeOptions.of(plain)
    if options.base_url is None and router is not None:
        # the router's port differs in every run; verl serves the model under its path
        name = options.server_name or "verl"
        options = options.model_copy(update={"base_url": f"http://{router}/v1", "server_name": name})
    return options


def check(judge: Mapping[str, Any] | None = None, reward_router_address: str | None = None, **_: Any) -> None:
    """Check options and prompt before Ray starts; :mod:`saw.verl.config_checks` checks the key.

    Raises:
        JudgeError: naming the setting.
    """
    options = options_of(judge, reward_router_address)
    if options.base_url is None:
        raise JudgeError("judge.base_url is not set, and verl serves no judge; set it, or choose judge=verl")
    prompt.check(options.prompt_path)
