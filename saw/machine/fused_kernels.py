"""When verl's fused log-probabilities can replace flash-attn's: one rule for the start and the estimates."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

MODEL = "actor_rollout_ref.model"
#: verl's own default is False; ``configs/train.yaml`` has null: chosen when the training starts.
KEY = f"{MODEL}.use_fused_kernels"
#: Model types for which verl's fused log-probabilities are known to be correct (``tests/contract/test_attention.py``).
MODELS = ("llama", "qwen2", "qwen3")


def impossible(config: DictConfig, tied: bool) -> str | None:
    """Why the fused kernels would fail or be wrong; None if no obstacle is known.

    Args:
        config (DictConfig): verl's configuration.
        tied (bool): whether the model's output layer is its embedding.
    """
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    if actor.get("calculate_sum_pi_squared"):
        return "actor_rollout_ref.actor.calculate_sum_pi_squared is True, for which verl needs the logits"
    tied = OmegaConf.select(model, "override_config.tie_word_embeddings", default=tied)
    if actor.strategy == "fsdp2" and not tied:
        return "the model has a separate output layer, which verl's fused kernels can't read under FSDP2"
    return None


def untried(config: DictConfig, model_type: str) -> str | None:
    """Why the fused kernels are not chosen, although they may work; None if they are known to work.

    Args:
        config (DictConfig): verl's configuration.
        model_type (str): transformers' name for the model's architecture.
    """
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    if actor.strategy != "fsdp2":
        return f"actor_rollout_ref.actor.strategy is {actor.strategy!r} and verl's fused kernels are tested with fsdp2"
    if model.get("lora_rank", 0) > 0:
        return f"{MODEL}.lora_rank is {model.lora_rank} and verl's fused kernels are not tested with adapters"
    if model_type not in MODELS:
        return f"verl's fused kernels are not tested with the model type {model_type!r}"
    return None
