"""Parity with numbers computed by the authors' released code."""

import json

import pytest
import torch

import saw
from saw.verl.config_checks import check_config
from tests.configs import compose
from tests.conftest import GOLDEN
from tests.objectives import objectives

#: The released code's names and ours.
METHODS = {"grpo": "grpo", "gdpo": "gdpo", "grpo-h": "saw_grpo", "gdpo-h": "saw_gdpo"}


@pytest.mark.parametrize("released_name", METHODS)
def test_golden(released_name):
    cases = json.loads((GOLDEN / "advantages.json").read_text())["cases"]
    assert cases
    row = ["experiment=toolrl", "reading=as_released", f"saw.method={METHODS[released_name]}"]
    options = check_config(compose(*row)).options  # exactly as in a training
    for case in cases:
        lengths = torch.tensor(case["response_lengths"])
        mask = torch.arange(case["max_response_length"]) < lengths[:, None]
        tokens = saw.compute_advantage(
            torch.tensor([case["correctness"], case["format"]]).T,
            case["uid"],
            mask,
            method=METHODS[released_name],
            objectives=objectives(minimum=[-3.0, 0.0]),
            options=options,
        ).tokens
        expected = torch.tensor([value for row in case["advantages"][released_name] for value in row])
        torch.testing.assert_close(tokens[mask], expected, atol=1e-5, rtol=0, msg=lambda m, c=case: f"{c['name']}: {m}")
