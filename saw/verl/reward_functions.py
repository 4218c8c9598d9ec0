"""The project's rewards as verl's custom reward functions.

Set ``reward.custom_reward_function.path=pkg://saw.verl.reward_functions``, and the name of a function. Its options are
``reward.custom_reward_function.reward_kwargs``; :mod:`saw.verl.reward_manager` passes the training step as
``extra_info["global_step"]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from saw.faults import readable
from saw.rewards import returns
from saw.rewards import toolrl as toolrl_rewards
from saw.verl import judge_actor as judges


def check_toolrl(options: Mapping[str, Any] | None = None) -> None:
    """Check the options.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    try:
        toolrl_rewards.Options.of(options)
    except ValidationError as error:
        raise ValueError(readable(error, "options", toolrl_rewards.Options)) from None
    except (TypeError, ValueError):
        raise ValueError(f"options is {options!r}; expected a mapping from name to value") from None


def toolrl_bounds(step: int, options: Mapping[str, Any] | None = None) -> Mapping[str, tuple[float, float]]:
    """Ranges of ToolRL's rewards at a training step."""
    return toolrl_rewards.bounds(options, step)


@returns("format", "correctness", "length", bounds=toolrl_bounds, check=check_toolrl)
def toolrl(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """ToolRL's rewards, see :mod:`saw.rewards.toolrl`; ``options`` are :class:`saw.rewards.toolrl.Options`."""
    return toolrl_rewards.score(solution_str, ground_truth, options, step=(extra_info or {}).get("global_step", 0))


def tldr_bounds(step: int, judge: Mapping[str, Any] | None = None) -> Mapping[str, tuple[float, float]]:
    """Ranges of the judge's scores."""
    options = judges.options_of(judge, router=None)
    return {name: (float(options.lowest), float(options.highest)) for name in options.objectives}


@returns("quality", "conciseness", bounds=tldr_bounds, check=judges.check)
async def tldr(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """An LLM judge's scores of a summary, NaN where it gave none; ``judge`` holds the judge's options.

    The dict also has the cost of the question, under names that begin with ``judge_``, for the metrics.
    """
    post = (extra_info or {})["post"]
    fields = {"reddit_text": post, "human_summary": ground_truth, "model_summary": solution_str}
    verdict = await judges.ask(judges.options_of(judge, reward_router_address), fields)
    return {
        **verdict.scores,
        "judge_requests": float(verdict.requests),
        "judge_cached": float(verdict.cached),
        "judge_seconds": verdict.seconds,
        "judge_input_tokens": float(verdict.input_tokens),
        "judge_output_tokens": float(verdict.output_tokens),
        "judge_dollars": verdict.dollars,
        "judge_uncounted": float(verdict.uncounted),
    }
