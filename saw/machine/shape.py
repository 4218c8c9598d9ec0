"""The sizes of a model, which determine its memory."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """The sizes in a model's ``config.json``, for a decoder such as Qwen2.

    Attributes:
        hidden (int): size of a token's vector.
        layers (int): decoder layers.
        heads (int): attention heads.
        kv_heads (int): heads of keys and values.
        intermediate (int): width of the MLP.
        vocabulary (int): rows of the embedding.
        tied (bool): whether the output layer is the embedding.
        head (int | None): size of a head; None for hidden / heads.
        attention_bias (bool): whether q, k and v have a bias.
        model_type (str): transformers' name for the architecture.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    head: int | None = None
    attention_bias: bool = True
    model_type: str = "qwen2"

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * (self.head or self.hidden // self.heads)

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * (self.head or self.hidden // self.heads)

    @property
    def layer_parameters(self) -> int:
        """Parameters of a decoder layer."""
        projections = self.hidden * (2 * self.queries + 2 * self.keys)
        bias = self.queries + 2 * self.keys if self.attention_bias else 0
        return projections + bias + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def root_parameters(self) -> int:
        """Parameters outside the layers: embedding, final norm, and the output layer if it is separate."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer_parameters + self.root_parameters


#: From the models' config.json.
SHAPES = {
    "qwen2.5-1.5b": Shape(1536, 28, 12, 2, 8960, 151_936, tied=True),
    "qwen2.5-3b": Shape(2048, 36, 16, 2, 11_008, 151_936, tied=True),
}


def shape_of(model: str) -> Shape:
    """Shape of a model, from the table, a local folder, or the Hub's local cache; nothing is downloaded.

    Args:
        model (str): folder or Hub name (``actor_rollout_ref.model.path``).

    Raises:
        ValueError: if it is in none of the three, or its config lacks a size.
    """
    file = Path(model).expanduser() / "config.json"
    if not file.is_file():  # a folder with a known model's name may hold another model
        for name, shape in SHAPES.items():
            if Path(model).name.lower() in (name, f"{name}-instruct"):
                return shape
        from huggingface_hub import try_to_load_from_cache  # costs a second
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(model, "config.json")
        except HFValidationError:  # not a valid name on the Hub
            cached = None
        if not isinstance(cached, str):
            raise ValueError(
                f"actor_rollout_ref.model.path is {model!r}, whose sizes are unknown; expected one of "
                f"{', '.join(SHAPES)}, a folder with a config.json, or a model in the Hub's cache"
            )
        file = Path(cached)
    config = json.loads(file.read_text())
    if experts := [key for key in config if re.fullmatch(r"(num|n)_(local_|routed_)?experts", key) and config[key]]:
        raise ValueError(f"{file} has {experts[0]}: {config[experts[0]]}; the estimate covers models without experts")
    try:
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            head=config.get("head_dim"),
            attention_bias=config.get("attention_bias", config.get("model_type") == "qwen2"),
            model_type=config.get("model_type", "unknown"),
        )
    except KeyError as missing:
        raise ValueError(f"{file} has no {missing}; expected the config of a decoder such as Qwen2") from None
