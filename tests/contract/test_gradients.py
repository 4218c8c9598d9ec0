"""The objectives' policy gradients from verl's own actor under FSDP2, against plain autograd in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from saw.method.weighting import clip_norms
from saw.verl.gradients import chosen_parameters, gram_matrix
from tests.contract.ranks import run_ranks

TEMPERATURE = 0.7
ROWS = [
    {"prompt": [5, 6, 7], "response": [8, 9, 10, 11], "advantages": [1.0, -0.5, 0.25]},
    {"prompt": [5, 6], "response": [12, 13], "advantages": [-1.0, 0.5, 0.25]},
    {"prompt": [20, 21, 22, 23], "response": [24], "advantages": [0.7, 0.0, -2.0]},
    {"prompt": [30], "response": [31, 32, 33, 34, 35, 36], "advantages": [-0.7, 1.5, 0.5]},
]


def tiny_model(path: Path, hidden_size: int = 20) -> Path:
    """A model with random weights; by default of odd sizes, so that two shards are uneven."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=61,
        hidden_size=hidden_size,
        intermediate_size=27,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def tokens_of(rows: list[dict]) -> int:
    return sum(len(row["response"]) for row in rows)


def divisors(case: dict, ranks: int) -> list[int]:
    """The divisor of each row's loss: all tokens, or its micro-batch's times the ranks that are averaged over."""
    if case["reduction"] == "mean":
        return [tokens_of(ROWS)] * len(ROWS)
    found = [0] * len(ROWS)
    for rank in range(ranks):
        places, size = list(range(rank, len(ROWS), ranks)), case["micro_batch"]
        for start in range(0, len(places), size):
            micro = places[start : start + size]
            for place in micro:
                found[place] = tokens_of([ROWS[row] for row in micro]) * ranks
    return found


def by_autograd(path: Path, case: dict, ranks: int) -> torch.Tensor:
    """The plain computation: one sequence at a time, no padding, no parallelism; torch's own clip."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    losses = [torch.zeros((), dtype=torch.float64) for _ in range(3)]
    for row, tokens in zip(ROWS, divisors(case, ranks), strict=True):
        ids = torch.tensor([row["prompt"] + row["response"]])
        log_probs = (model(ids).logits / TEMPERATURE).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        said = log_probs[len(row["prompt"]) - 1 :].sum()
        losses = [loss - a * said / tokens for loss, a in zip(losses, row["advantages"], strict=True)]
    chosen = chosen_parameters(model, case["layers"])
    flat = []
    for loss in losses:
        model.zero_grad()
        loss.backward(retain_graph=True)
        if case["clip"] is not None:
            torch.nn.utils.clip_grad_norm_(chosen, case["clip"])
        flat.append(torch.cat([parameter.grad.flatten() for parameter in chosen]))
    return torch.stack(flat) @ torch.stack(flat).T


NAMES = ("layers", "micro_batch", "checkpointing", "reduction", "clip")
#: Clips of 6 and 10 lie between the norms, so that only some gradients are clipped; 1 is below all norms.
CASES = [
    dict(zip(NAMES, case, strict=True))
    for case in (
        ([], 2, False, "mean", None),
        ([], 1, True, "mean", 6.0),
        ([1], 1, False, "mean", None),
        ([0, 2], 2, True, "mean", None),
        ([], 1, False, "sum", None),
        ([], 2, False, "sum", 10.0),
        ([0, 2], 1, True, "sum", 1.0),
    )
]


def found_by_ranks(folder: Path, model: Path, cases: list[dict], ranks: int, **environment: str) -> list[list[dict]]:
    """For each rank, the cases with its worker's results; the environment sets the device."""
    for name, content in (("rows", ROWS), ("cases", cases)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    files = folder / "rows.json", folder / "cases.json"
    run_ranks("gradients_by_rank", ranks, model, *files, folder, **environment)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def check_gram(case: dict, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """The matrix is as expected; each entry's tolerance is relative to its gradients' norms."""
    gram = clip_norms(torch.tensor(case["found"]["gram"], dtype=torch.float64), case["clip"])
    norms = expected.diagonal().sqrt()
    assert ((gram - expected).abs() <= tolerance * norms[:, None] * norms).all(), (case, gram, expected)
    assert case["found"]["left"] == []  # nothing is left that could disturb the update


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.seam), 2])
def test_gram_matrix_is_that_of_plain_autograd(tmp_path, model, ranks):
    """On the CPU; tests/gpu/test_worker.py has one rank on a GPU."""
    for cases in found_by_ranks(tmp_path, model, CASES, ranks, VERL_PLATFORM="cpu", CUDA_VISIBLE_DEVICES=""):
        for case in cases:
            check_gram(case, by_autograd(model, case, ranks))
            assert case["found"]["drift"] < 1e-5  # the log-probabilities are verl's own


def test_layers_that_the_model_does_not_have_are_named(model):
    with pytest.raises(ValueError, match=r"layers has 3, .* it has 0 to 2"):
        chosen_parameters(AutoModelForCausalLM.from_pretrained(model), (1, 3))


def test_an_objective_without_gradients_counts_nothing():
    parameter = torch.nn.Parameter(torch.zeros(2))
    gram = gram_matrix([{parameter: torch.tensor([3.0, 4.0])}, {}])
    assert gram.tolist() == [[25.0, 0.0], [0.0, 0.0]]
