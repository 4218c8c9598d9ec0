"""What saw/verl/attention.py relies on: sdpa on packed rows, and verl's fused kernels, against plain autograd.

Everything runs on a CPU, in verl's own worker, on two ranks.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config
from verl.utils.torch_functional import logprobs_from_logits

from saw.machine import fused_kernels
from tests.contract.ranks import run_ranks

pytestmark = pytest.mark.slow

TEMPERATURE = 0.7
RANKS = 2
#: Lengths of 3 to 9 tokens, one with one response token, one with one prompt token; four rows per rank.
ROWS = [
    {"prompt": [5, 6, 7], "response": [8, 9, 10, 11], "advantages": [1.0, -0.5, 0.25]},
    {"prompt": [5, 6], "response": [12, 13], "advantages": [-1.0, 0.5, 0.25]},
    {"prompt": [20, 21, 22, 23], "response": [24], "advantages": [0.7, 0.0, -2.0]},
    {"prompt": [30], "response": [31, 32, 33, 34, 35, 36], "advantages": [-0.7, 1.5, 0.5]},
    {"prompt": [40, 41], "response": [42], "advantages": [0.2, 0.3, 0.4]},
    {"prompt": [3, 4, 5, 6], "response": [50, 51, 52], "advantages": [2.0, -1.0, 0.1]},
    {"prompt": [17, 18, 19], "response": [7, 6, 5, 4, 3, 2], "advantages": [0.5, 0.5, -1.0]},
    {"prompt": [9], "response": [9, 9], "advantages": [-0.3, 0.8, 0.6]},
]
PLAIN = {
    **{"model": "qwen2", "attention": "sdpa", "precision": "fp32"},
    **{"remove_padding": False, "fused": False, "dynamic": False},
}
#: Name of a case -> how it differs from the plain one.
CASES = {
    "padded": {},
    "packed": {"remove_padding": True},
    "packed, dynamic": {"remove_padding": True, "dynamic": True},
    "packed, eager": {"remove_padding": True, "attention": "eager"},
    "padded, fused": {"fused": True},
    "packed, fused": {"remove_padding": True, "fused": True},
    "packed, fused, dynamic": {"remove_padding": True, "fused": True, "dynamic": True},
    "packed, fused, llama": {"remove_padding": True, "fused": True, "model": "llama"},
    "packed, fused, qwen3": {"remove_padding": True, "fused": True, "model": "qwen3"},
    "packed, bf16": {"remove_padding": True, "precision": "bf16"},
    "packed, fused, bf16": {"remove_padding": True, "fused": True, "precision": "bf16"},
    "packed, fused, untied": {"remove_padding": True, "fused": True, "model": "untied"},
}
FLOAT32 = [name for name, case in CASES.items() if case.get("precision") != "bf16" and "untied" not in name]


def tiny(kind: type[PretrainedConfig], **more: Any) -> PretrainedConfig:
    sizes = {"vocab_size": 61, "hidden_size": 20, "intermediate_size": 27, "num_hidden_layers": 3}  # uneven shards
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 10, "max_position_embeddings": 64}
    return kind(**sizes, **heads, **{"tie_word_embeddings": True, "initializer_range": 0.3, **more})


MODELS = {
    "qwen2": tiny(Qwen2Config),
    "llama": tiny(LlamaConfig),
    "qwen3": tiny(Qwen3Config),
    "untied": tiny(Qwen2Config, tie_word_embeddings=False),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory, models) -> dict[str, list[dict]]:
    """Name of a case -> each rank's results."""
    folder = tmp_path_factory.mktemp("found")
    for name, content in (("rows", ROWS), ("cases", [{**PLAIN, **case} for case in CASES.values()])):
        (folder / f"{name}.json").write_text(json.dumps(content))
    run_ranks("attention_by_case", RANKS, models, folder / "rows.json", folder / "cases.json", folder)
    by_rank = [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]
    return {name: [rank[place] for rank in by_rank] for place, name in enumerate(CASES)}


def in_order(by_rank: list[dict], key: str) -> list[Tensor]:
    """A field of all rows, in the original order: the ranks took them in turn."""
    return [by_rank[place % RANKS][key][place // RANKS] for place in range(len(ROWS))]


@functools.cache
def by_autograd(path: Path) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probabilities and gradients, one row at a time in float64, without padding or parallelism."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    log_probs, loss = [], torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        ids = torch.tensor([row["prompt"] + row["response"]])
        every = (model(ids).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        log_probs.append(every.gather(1, ids[0, 1:, None])[:, 0])
        said, entropy = (
            log_probs[-1][len(row["prompt"]) - 1 :],
            -(every.exp() * every).sum(-1)[len(row["prompt"]) - 1 :],
        )
        loss = loss - (row["advantages"][0] * said + 0.1 * entropy).sum() / RANKS  # FSDP averages over the ranks
    loss.backward()
    return [row.detach() for row in log_probs], {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", FLOAT32)
def test_log_probabilities_and_gradients_are_those_of_each_row_by_itself(found, models, name):
    by_rank = found[name]
    log_probs, gradients = by_autograd(models / (CASES[name].get("model", "qwen2")))
    for ours, alone, expected in zip(
        in_order(by_rank, "log_probs"), in_order(by_rank, "alone"), log_probs, strict=True
    ):
        torch.testing.assert_close(ours.double(), expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)  # whatever rows are packed with it
    for rank in by_rank:
        assert rank["gradients"].keys() == gradients.keys()
        for parameter, expected in gradients.items():
            drift = (rank["gradients"][parameter].double() - expected).norm() / expected.norm()
            assert drift < 1e-5, (parameter, drift)


@pytest.mark.parametrize("name", [name for name in FLOAT32 if "model" not in CASES[name]])
def test_objectives_gradients_and_entropies_do_not_depend_on_the_case(found, name):
    for key in ("gram", "gram_of_layers"):
        ours, plain = found[name][0][key], found["padded"][0][key]
        torch.testing.assert_close(ours, plain, atol=1e-5 * plain.abs().max().item(), rtol=0)
    for ours, plain in zip(in_order(found[name], "entropy"), in_order(found["padded"], "entropy"), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["packed", "packed, eager", "packed, fused"])
def test_it_is_the_positions_that_keep_packed_rows_apart(found, name):
    """The test above can fail: with positions that continue from row to row, the rows become one."""
    first, *others = zip(in_order(found[name], "run_together"), in_order(found[name], "log_probs"), strict=True)
    assert torch.allclose(*first, atol=1e-5)  # there is nothing before it
    assert sum(not torch.allclose(mixed, own, atol=1e-2) for mixed, own in others) >= len(ROWS) - RANKS - 1


def test_without_flash_attn_16_bit_logits_give_16_bit_log_probabilities_and_fused_kernels_32(found):
    """Why fused kernels are chosen with sdpa: the probability ratio of two rounded numbers is off by percents."""
    assert {rank["dtype"] for rank in found["packed, bf16"]} == {"torch.bfloat16"}
    assert {rank["dtype"] for rank in found["packed, fused, bf16"]} == {"torch.float32"}


def test_without_flash_attn_log_probabilities_go_row_by_row(monkeypatch):
    rows = []
    monkeypatch.setattr(torch.nn.functional, "log_softmax", lambda x, dim: rows.append(x.shape) or x.log_softmax(dim))
    logprobs_from_logits(torch.randn(7, 5, dtype=torch.bfloat16), torch.zeros(7, dtype=torch.int64))
    assert rows == [(5,)] * 7


def test_fused_kernels_cannot_read_an_untied_output_layer(found):
    """As long as this fails in verl, saw/verl/attention.py keeps them off for such models."""
    assert all("mixed torch.Tensor and DTensor" in rank["error"] for rank in found["packed, fused, untied"])


def test_every_model_type_that_gets_fused_kernels_is_tried_here():
    tried = {MODELS[case.get("model", "qwen2")].model_type for case in CASES.values() if case.get("fused")}
    assert tried == set(fused_kernels.MODELS)
