"""The lean trainer against verl's own parts: with the same samples, the same rows, metrics and weights."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.toy_toolrl import make_rows
from recipes.study import lean
from tests.configs import compose
from tests.contract.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.cpu_platform]
#: As in lean_by_verl.py: the second step takes rows of the second epoch.
ROWS = 24


@pytest.fixture(scope="module", params=["saw_grpo", "gdpo"])
def by_verl(request, tmp_path_factory, toy_model) -> tuple[str, list[dict], dict[str, torch.Tensor]]:
    """A method, and the steps and last weights of ``lean_by_verl.py``."""
    folder = tmp_path_factory.mktemp(request.param)
    run_ranks("lean_by_verl", 1, toy_model, request.param, folder, CUDA_VISIBLE_DEVICES="")
    return request.param, json.loads((folder / "steps.json").read_text()), torch.load(folder / "weights.pt")


def test_two_steps_are_verl_s(by_verl, toy_model, monkeypatch):
    """Kind: another order, reward, statistic, advantage, loss, clip or optimiser than the pipeline's.

    The second step's entropy and gradient depend on the first step's update.
    """
    method, steps, weights = by_verl
    settings = lean.settings_of(compose("experiment=study", f"saw.method={method}"))
    policy = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    optimiser = lean.make_optimiser(policy, settings)
    rows = lean.fitting(tokenizer, make_rows(ROWS, "train", seed=0), settings.longest_prompt)
    assert settings.prompts <= len(rows) < 2 * settings.prompts
    batches = lean.data_order(rows, settings.prompts, settings.seed)
    for number, step in enumerate(steps, 1):
        rows = [torch.tensor(response) for response in step["responses"]]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        monkeypatch.setattr(lean, "sample", lambda *_, given=(padded, mask), **__: given)
        batch = next(batches)
        assert [row["prompt"] for row in batch] == step["prompts"]
        found = lean.train_step(policy, tokenizer, optimiser, batch, settings, number)
        compared = [name for name in step["metrics"] if name in found]
        assert {name.split("/")[0] for name in compared} == {"saw", "actor"}
        assert found["saw/format/std"] > 0  # the samples differ, so there is something to learn
        for name in compared:
            assert found[name] == pytest.approx(step["metrics"][name], rel=1e-4, abs=1e-6), (number, name)
    # As a whole: where a gradient is nearly 0, Adam makes steps of mere rounding errors.
    trained = policy.state_dict()
    own, expected = (
        torch.cat([(after[name] - before[name]).flatten() for name, _ in policy.named_parameters()])
        for after in (trained, weights)
    )
    assert float(expected.abs().max()) == pytest.approx(len(steps) * settings.lr, rel=0.1)
    assert float((own - expected).norm() / expected.norm()) < 0.01
