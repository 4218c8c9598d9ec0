"""The study's training of the small language model in one process and one thread, without Ray and vLLM.

It takes its sizes and rates from the study's composed configuration, and refuses a setting that it does not implement.
A loop with a key-value cache replaces vLLM, and the plain module replaces FSDP. The rewards and the advantages are the
library's own. A seed fixes the order of the data, as in verl, and the samples:
the same seed gives the same numbers, bit for bit, on the same machine and with the same versions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from saw.method.advantage import compute_advantage
from saw.method.metrics import training_metrics
from saw.method.objective import Objective
from saw.records.files import write_whole
from saw.records.run_info import write_record
from saw.report.history import LOG
from saw.rewards import toolrl

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
#: Field of :class:`Settings` -> verl's key.
KEYS = {
    "method": "saw.method",
    "profile": "saw.options.profile",
    "seed": "data.seed",
    "steps": "trainer.total_training_steps",
    "prompts": "data.train_batch_size",
    "longest_prompt": "data.max_prompt_length",
    "longest_response": "data.max_response_length",
    "samples": f"{ROLLOUT}.n",
    "lr": f"{ACTOR}.optim.lr",
    "betas": f"{ACTOR}.optim.betas",
    "weight_decay": f"{ACTOR}.optim.weight_decay",
    "clip_grad": f"{ACTOR}.optim.clip_grad",
    "clip_low": f"{ACTOR}.clip_ratio_low",
    "clip_high": f"{ACTOR}.clip_ratio_high",
    "clip_dual": f"{ACTOR}.clip_ratio_c",
}
#: verl's settings that are built in here, and the only value each may have.
BUILT_IN = {
    f"{ACTOR}.optim.optimizer": "AdamW",
    f"{ACTOR}.optim.optimizer_impl": "torch.optim",
    f"{ACTOR}.optim.override_optimizer_config": None,
    f"{ACTOR}.optim.lr_scheduler_type": "constant",
    f"{ACTOR}.optim.lr_warmup_steps": -1,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": 0.0,
    f"{ACTOR}.policy_loss.loss_mode": "vanilla",
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ACTOR}.ppo_epochs": 1,
    f"{ACTOR}.use_kl_loss": False,
    f"{ACTOR}.entropy_coeff": 0.0,
    f"{ACTOR}.fsdp_config.dtype": "float32",
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_k": -1,
    f"{ROLLOUT}.top_p": 1,
    f"{ROLLOUT}.do_sample": True,
    f"{ROLLOUT}.ignore_eos": False,
    "algorithm.use_kl_in_reward": False,
    "algorithm.filter_groups.enable": False,
    "algorithm.rollout_correction.bypass_mode": False,
    "algorithm.rollout_correction.rollout_is": None,
    "algorithm.rollout_correction.rollout_rs": None,
    "data.shuffle": True,
    "data.filter_overlong_prompts": True,
    "saw.objectives": {"format": {"priority": 1}, "correctness": {"priority": 1}},
    "saw.options.informativeness": "cv",
    "saw.options.over": "batch",
    "saw.options.ema": 0.0,
    "saw.options.floor": 0.0,
    "saw.options.max_change": None,
    "saw.options.log_only": False,
    "saw.options.static_weights": None,
    "reward.custom_reward_function.name": "toolrl",
    "reward.custom_reward_function.reward_kwargs.options": {},
}


@dataclass(frozen=True)
class Settings:
    """What a training depends on, besides model and rows; :data:`KEYS` has verl's name of each.

    Attributes:
        method (str): in :data:`saw.METHODS`; not one that compares gradients.
        profile (str): the constants of the advantages.
        seed (int): of the data order and of the samples.
        steps (int): training steps, one update each.
        prompts (int): per step.
        longest_prompt (int): tokens; rows with a longer one are left out.
        longest_response (int): tokens, its end included.
        samples (int): responses per prompt.
        lr (float): constant.
        betas (tuple[float, float]): of AdamW.
        weight_decay (float): of AdamW.
        clip_grad (float): largest norm of the gradient.
        clip_low (float): the ratio of probabilities is clipped to at least 1 minus this.
        clip_high (float): and to at most 1 plus this.
        clip_dual (float): largest ratio for a negative advantage.
    """

    method: str
    profile: str
    seed: int
    steps: int
    prompts: int
    longest_prompt: int
    longest_response: int
    samples: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip_grad: float
    clip_low: float
    clip_high: float
    clip_dual: float


class Unsupported(ValueError):
    """A setting that only the pipeline has, or that the data does not allow."""


def settings_of(config: DictConfig) -> Settings:
    """Read a composed configuration.

    Raises:
        Unsupported: if it has a setting that is not implemented here; the message names the key and both values.
    """
    expected = {**BUILT_IN, f"{ACTOR}.ppo_mini_batch_size": config.data.train_batch_size}  # one update per step
    for key, value in expected.items():
        found = OmegaConf.select(config, key)
        if found != value:
            raise Unsupported(f"{key} is {found!r}; the lean trainer only has {value!r}, so use the pipeline")
    values = {name: OmegaConf.select(config, key) for name, key in KEYS.items()}
    values["betas"] = tuple(values["betas"]) if isinstance(values["betas"], ListConfig) else values["betas"]
    if values["method"].startswith("gradient_"):
        raise Unsupported(f"saw.method is {values['method']!r}; the lean trainer computes no gradient per objective")
    return Settings(**values)


def train(settings: Settings, model: Path, rows: Sequence[Mapping[str, Any]], folder: Path, command: str) -> None:
    """Train from the start, and write ``run.json`` and, last and as a whole, ``metrics.jsonl``.

    Args:
        settings (Settings): of the training.
        model (Path): a Hugging Face folder with the start and its tokenizer.
        rows (Sequence[Mapping]): in verl's schema.
        folder (Path): for the two files; a ``metrics.jsonl`` in it means that the training is finished.
        command (str): for ``run.json``.
    """
    config = OmegaConf.create()
    for name, value in asdict(settings).items():
        OmegaConf.update(config, KEYS[name], value)
    packages = ("torch", "transformers", "torchdata")
    write_record(
        folder, OmegaConf.to_container(config), toolrl.bounds(), settings.steps, command=command, packages=packages
    )
    lines = [json.dumps({"step": step, "data": data}) for step, data in enumerate(steps_of(settings, model, rows), 1)]
    write_whole(folder / LOG, "\n".join(lines) + "\n")


def steps_of(settings: Settings, model: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, float]]:
    """Train, and yield the metrics of each step; arguments as in :func:`train`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    optimiser = make_optimiser(policy, settings)
    batches = data_order(fitting(tokenizer, rows, settings.longest_prompt), settings.prompts, settings.seed)
    for step in range(1, settings.steps + 1):
        yield train_step(policy, tokenizer, optimiser, next(batches), settings, step)


def make_optimiser(policy: PreTrainedModel, settings: Settings) -> torch.optim.Optimizer:
    """verl's optimiser."""
    return torch.optim.AdamW(
        policy.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )


def data_order(rows: Sequence[Any], prompts: int, seed: int) -> Iterator[list[Any]]:
    """Batches of rows without end, in the order of verl's synchronous trainer; what fills no batch is left out."""
    if len(rows) < prompts:
        raise Unsupported(f"data.train_batch_size is {prompts}; there are only {len(rows)} rows whose prompt fits")
    sampler: Any = RandomSampler(rows, generator=torch.Generator().manual_seed(seed))
    loader = StatefulDataLoader(rows, batch_size=prompts, sampler=sampler, drop_last=True, collate_fn=list)
    while True:
        yield from loader


def train_step(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimiser: torch.optim.Optimizer,
    batch: Sequence[Mapping[str, Any]],
    settings: Settings,
    step: int,
) -> dict[str, float]:
    """Sample, score, weight and update once; returns the metrics under the pipeline's names."""
    started = time.perf_counter()
    rows = [row for row in batch for _ in range(settings.samples)]
    prompts, prompt_mask = encode(tokenizer, batch)
    # The generator depends on seed and step alone, so that a method's lengths do not change the next step's samples.
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    responses, mask = sample(
        policy, prompts, prompt_mask, settings.samples, longest=settings.longest_response, generator=generator
    )
    texts = [
        tokenizer.decode(tokens[: int(length)], skip_special_tokens=True)
        for tokens, length in zip(responses, mask.sum(dim=1), strict=True)
    ]
    sampled = time.perf_counter()
    ranges = toolrl.bounds(step=step)
    scores = [
        toolrl.score(text, row["reward_model"]["ground_truth"], step=step)
        for text, row in zip(texts, rows, strict=True)
    ]
    advantage = compute_advantage(
        torch.tensor([[score[name] for name in ranges] for score in scores], dtype=torch.float64),
        torch.arange(len(batch)).repeat_interleave(settings.samples),
        mask,
        method=settings.method,
        objectives=[Objective(name, *bounds) for name, bounds in ranges.items()],
        options={"profile": settings.profile, "seed": settings.seed},
        step=step,
    )
    assert advantage.tokens is not None
    weighted = time.perf_counter()
    updated = update(policy, optimiser, prompts, prompt_mask, responses, mask, advantage.tokens, settings)
    ended = time.perf_counter()
    return {
        **training_metrics(advantage, list(ranges)),
        **updated,
        "response_length/mean": float(mask.sum(dim=1).double().mean()),
        "timing_s/gen": sampled - started,
        "timing_s/adv": weighted - sampled,
        "timing_s/update_actor": ended - weighted,
        "timing_s/step": ended - started,
    }


def tokens_of(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[int]:
    """A row's prompt."""
    return tokenizer.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, return_dict=False)


def fitting(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], longest: int
) -> list[Mapping[str, Any]]:
    """The rows whose prompt has at most ``longest`` tokens; verl leaves the others out."""
    return [row for row in rows if len(tokens_of(tokenizer, row)) <= longest]


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Prompts, padded on the left, and their mask, both int64 of shape ``(B, P)``."""
    found = [tokens_of(tokenizer, row) for row in rows]
    width, pad = max(map(len, found)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in found])
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in found])


def prefill(
    policy: PreTrainedModel, prompts: Tensor, prompt_mask: Tensor, samples: int
) -> tuple[DynamicCache, Tensor, Tensor]:
    """Each prompt once through the model, then repeated for its responses.

    Args:
        policy (PreTrainedModel): the model.
        prompts (Tensor): shape ``(B, P)``, padded on the left.
        prompt_mask (Tensor): shape ``(B, P)``.
        samples (int): responses per prompt.

    Returns:
        tuple[DynamicCache, Tensor, Tensor]: keys and values, the mask ``(B * samples, P)``, and the logits of the first
        token, shape ``(B * samples, V)``.
    """
    cache = DynamicCache(config=policy.config)
    logits = policy(
        input_ids=prompts,
        attention_mask=prompt_mask,
        position_ids=positions_of(prompt_mask),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.batch_repeat_interleave(samples)
    return cache, prompt_mask.repeat_interleave(samples, dim=0), logits.repeat_interleave(samples, dim=0)


def positions_of(attention: Tensor) -> Tensor:
    """Position of each token among the unmasked ones, from 0."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


@torch.no_grad()
def sample(
    policy: PreTrainedModel,
    prompts: Tensor,
    prompt_mask: Tensor,
    samples: int,
    *,
    longest: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Responses at temperature 1 from the whole vocabulary.

    Args:
        policy (PreTrainedModel): its configuration has the end and the padding token.
        prompts (Tensor): shape ``(B, P)``, padded on the left.
        prompt_mask (Tensor): shape ``(B, P)``.
        samples (int): responses per prompt.
        longest (int): tokens.
        generator (torch.Generator): of the samples.

    Returns:
        tuple[Tensor, Tensor]: responses and their mask, int64 of shape ``(B * samples, T)``; the end token belongs to a
        response.
    """
    cache, seen, logits = prefill(policy, prompts, prompt_mask, samples)
    positions = positions_of(seen)[:, -1:]
    open_rows = torch.ones(len(seen), 1, dtype=torch.long)
    tokens: list[Tensor] = []
    mask: list[Tensor] = []
    while len(tokens) < longest and open_rows.any():
        if tokens:
            logits = policy(
                input_ids=tokens[-1], attention_mask=seen, position_ids=positions, past_key_values=cache
            ).logits[:, -1]
        tokens.append(torch.where(open_rows.bool(), draw(logits, generator), policy.config.pad_token_id))
        mask.append(open_rows)
        seen, positions = torch.cat([seen, open_rows], dim=1), positions + 1
        open_rows = open_rows * (tokens[-1] != policy.config.eos_token_id)
    return torch.cat(tokens, dim=1), torch.cat(mask, dim=1)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row, shape ``(B, 1)``, by the inverse of the distribution function.

    This takes one random number per row, where ``torch.multinomial`` takes one per token of the vocabulary.
    """
    upto = logits.double().softmax(dim=-1).cumsum(dim=-1)
    place = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) * upto[:, -1:]
    return torch.searchsorted(upto, place, right=True)


def update(
    policy: PreTrainedModel,
    optimiser: torch.optim.Optimizer,
    prompts: Tensor,
    prompt_mask: Tensor,
    responses: Tensor,
    mask: Tensor,
    advantages: Tensor,
    settings: Settings,
) -> dict[str, float]:
    """One step of the optimiser.

    Args:
        policy (PreTrainedModel): the model.
        optimiser (torch.optim.Optimizer): of its parameters.
        prompts (Tensor): shape ``(B, P)``, padded on the left.
        prompt_mask (Tensor): shape ``(B, P)``.
        responses (Tensor): of the prompts in turn, equally many of each, shape ``(R, T)``.
        mask (Tensor): of the responses, shape ``(R, T)``.
        advantages (Tensor): shape ``(R, T)``.
        settings (Settings): the clips.

    Returns:
        dict[str, float]: under verl's names: the loss, the mean entropy of a response token before the update, in nats,
        and the gradient's norm before it is clipped.
    """
    cache, seen, first = prefill(policy, prompts, prompt_mask, len(responses) // len(prompts))
    seen = torch.cat([seen, mask[:, :-1]], dim=1)
    rest = policy(
        input_ids=responses[:, :-1],
        attention_mask=seen,
        position_ids=positions_of(seen)[:, prompts.shape[1] :],
        past_key_values=cache,
    ).logits
    every = torch.cat([first[:, None], rest], dim=1).log_softmax(dim=-1)  # a token's logits are those before it
    chosen = every.gather(-1, responses[:, :, None])[..., 0]
    # The only update of the step is the first, so the old policy is the current one and no ratio is clipped.
    loss = policy_loss(chosen, chosen.detach(), advantages, mask, settings)
    optimiser.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.clip_grad)
    if norm.isfinite():
        optimiser.step()
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(dim=-1)
        return {
            "actor/pg_loss": float(loss.detach()),
            "actor/entropy": float((entropy * mask).sum() / mask.sum()),
            "actor/grad_norm": float(norm),
        }


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, settings: Settings) -> Tensor:
    """PPO's clipped loss with the dual clip, as a mean over the response tokens.

    Args:
        new (Tensor): log-probabilities of the tokens, shape ``(B, T)``.
        old (Tensor): those of the policy that sampled them, shape ``(B, T)``.
        advantages (Tensor): shape ``(B, T)``.
        mask (Tensor): 1 on response tokens, shape ``(B, T)``.
        settings (Settings): the clips.

    Returns:
        Tensor: a scalar; with the value of verl's ``compute_policy_loss_vanilla`` and ``token-mean``.
    """
    ratio = (new - old).clamp(-20.0, 20.0).exp()
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * settings.clip_dual), loss)
    return (loss * mask).sum() / mask.sum()
