"""The gradient worker on a GPU, against plain autograd in float64 on the CPU. Needs verl, and no vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl", allow_module_level=True)

from tests.contract.test_gradients import by_autograd, check_gram, found_by_ranks, tiny_model

pytestmark = pytest.mark.slow
#: What flash-attention wants is a multiple of 8 a head.
HIDDEN = 32
FLASH = "flash_attention_2"
#: The environment of the worker; left empty, verl finds its platform itself.
ENVIRONMENT = {"cpu": {"VERL_PLATFORM": "cpu", "CUDA_VISIBLE_DEVICES": ""}, "cuda": {"VERL_PLATFORM": ""}}


def attention_of(device: str) -> str:
    """The attention that a training on the device has in half precision."""
    return FLASH if device == "cuda" and importlib.util.find_spec("flash_attn") else "sdpa"


def case(layers: list[int], micro_batch: int, checkpointing: bool, **engine: object) -> dict:
    """One case of tests/contract/gradients_by_rank.py, and the engine that it is for."""
    return {
        **{"layers": layers, "micro_batch": micro_batch, "checkpointing": checkpointing},
        **{"reduction": "mean", "clip": None, "engine": engine},
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), HIDDEN)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)
def test_gram_matrix_is_that_of_plain_autograd(tmp_path, model, device):
    half = {"precision": "bf16", "attention": attention_of(device), "remove_padding": True}
    cases = [
        case([], 2, False),
        case([0, 2], 1, True),
        case([], 4, False, remove_padding=True),
        case([1], 2, True, remove_padding=True),
        case([], 4, False, **half),
        case([1], 2, True, **half),
    ]
    (found,) = found_by_ranks(tmp_path, model, cases, 1, **ENVIRONMENT[device])
    for done in found:  # on the CPU, bfloat16 was up to 0.03 off, and float32 2e-6
        in_half = done["engine"].get("precision") == "bf16"
        check_gram(done, by_autograd(model, done, 1), tolerance=5e-2 if in_half else 1e-4)
        assert done["found"]["drift"] < (5e-2 if in_half else 1e-4)  # the log-probabilities are verl's own
        assert done["found"]["device"] == device
