"""The hooks for slime and miles, on stand-ins with the fields of their samples; their engines were not run."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import saw
from saw import slime
from tests.objectives import objectives

NAN = math.nan
#: What ``--custom-config-path`` reads.
FILE = """
saw:
  method: saw_gdpo
  objectives:
    correctness: {minimum: -3, priority: 2}
    format: {minimum: 0, maximum: 1}
  options: {profile: {group_eps: 1.0e-4}}
"""
NAMED = objectives(name=["correctness", "format"], minimum=[-3, 0], maximum=[None, 1], priority=[2, 1])
OPTIONS = {"profile": {"group_eps": 1e-4}}


@dataclass
class Sample:
    """The fields of slime's (624b824) and miles' (31f1ca9) Sample that matter here, with their defaults."""

    group_index: int | None = None
    reward: Any = None
    response_length: int = 0
    loss_mask: list[int] | None = None
    remove_sample: bool = False


def arguments(**changes: Any) -> SimpleNamespace:
    """The trainer's arguments, into which it copies the sections of the file."""
    section = yaml.safe_load(FILE)["saw"] | changes
    return SimpleNamespace(saw={key: value for key, value in section.items() if value is not None})


SAMPLES = [
    Sample(7, {"correctness": 3.0, "format": 1.0, "other": "ignored"}, 5),
    Sample(7, {"correctness": -1.0, "format": 0.0}, 3, loss_mask=[1, 0, 1]),
    Sample(8, {"correctness": 1.0, "format": None}, 4),
    Sample(8, {"correctness": NAN, "format": 1.0}, 2, remove_sample=True),
    Sample(8, {"correctness": -3.0, "format": 0.0}, 6),
    Sample(8, None, 6),  # aborted
]
REWARDS = torch.tensor([[3.0, 1.0], [-1, 0], [1, NAN], [NAN, 1], [-3, 0], [NAN, NAN]], dtype=torch.float64)
LENGTHS = torch.tensor([5, 2, 4, 0, 6, 6])
GROUPS = [7, 7, 8, 8, 8, 8]


def test_the_advantages_are_the_method_s():
    """Tokens that are not trained on do not count, and a missing reward never becomes 0."""
    raw, found = slime.post_process(arguments(), SAMPLES)
    expected = saw.compute_advantage(REWARDS, GROUPS, LENGTHS, method="saw_gdpo", objectives=NAMED, options=OPTIONS)
    assert found == expected.samples.tolist()
    assert raw == [4.0, -1.0, 1.0, 1.0, -3.0, 0.0]
    assert found[5] == 0.0
    zeros = [
        Sample(
            one.group_index,
            {"correctness": 0.0, "format": 0.0}
            | {k: v for k, v in (one.reward or {}).items() if v == v and v is not None},
        )
        for one in SAMPLES
    ]
    assert slime.post_process(arguments(), zeros)[1] != found


def test_the_weights_are_logged():
    metrics = {"rollout/time": 1.0}
    assert slime.log_rollout(3, arguments(), SAMPLES, metrics, 1.0) is False  # the trainer logs them
    expected = saw.compute_advantage(REWARDS, GROUPS, LENGTHS, method="saw_gdpo", objectives=NAMED, options=OPTIONS)
    assert [metrics["saw/correctness/weight"], metrics["saw/format/weight"]] == expected.weights.tolist()
    assert metrics["saw/format/missing"] == 2.0
    assert metrics["rollout/time"] == 1.0
    with pytest.raises(TypeError, match="metrics None"):
        slime.log_rollout(3, arguments(), SAMPLES, None, 1.0)


def test_random_weights_depend_on_the_prompts_and_not_on_the_process():
    """A resumed training draws on, as the trainer numbers its prompts on."""
    random = arguments(method="random_gdpo")
    weights = []
    for first in (0, 0, 16):
        metrics: dict[str, Any] = {}
        samples = [Sample(first + j // 2, {"correctness": float(j), "format": 0.0}, 3) for j in range(4)]
        slime.log_rollout(0, random, samples, metrics, 1.0)
        weights.append(metrics["saw/format/weight"])
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "ppo"}, ["'ppo'", "saw_gdpo"]),
        ({"methods": "gdpo"}, ["saw.methods", "method, objectives, options"]),
        ({"objectives": None}, ["saw.objectives is None", "minimum", "--custom-config-path"]),
        ({"objectives": {"format": {"low": 0}}}, ["low"]),
        ({"method": "gradient_gdpo"}, ["method is 'gradient_gdpo'", "policy gradients", "verl"]),
        ({"options": {"informativeness": "gradient_norm"}}, ["policy gradients"]),
        ({"options": {"ema": 0.5}}, ["options.ema is 0.5", "TRL"]),
        ({"options": {"max_change": 0.5}}, ["options.max_change is 0.5"]),
        ({"method": "ctwa"}, ["method is 'ctwa'", "covariance, next_weights", "TRL"]),
        ({"options": {"profile": "new"}}, ["'new'", "trl"]),
        ({"objectives": {"format": {"turn": 2}}}, ["'format' belongs to turn 2", "slime"]),
    ],
)
def test_a_section_that_cannot_work_is_named(changes, words):
    with pytest.raises(ValueError, match=r".") as error:
        slime.post_process(arguments(**changes), SAMPLES)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("args", [SimpleNamespace(), SimpleNamespace(saw="saw_gdpo"), SimpleNamespace(saw=None)])
def test_without_a_section_the_remedy_is_named(args):
    with pytest.raises(ValueError, match=r"saw is .*method, objectives, options.*--custom-config-path"):
        slime.post_process(args, SAMPLES)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (Sample(7, {"correctness": 1.0}, 5), ["sample 1", "'format'"]),
        (Sample(7, 1.0, 5), ["sample 1", "1.0", "'correctness'"]),
        (Sample(None, {"correctness": 1.0, "format": 0.0}, 5), ["group_index of sample 1"]),
        (Sample(7, {"correctness": -4.0, "format": 0.0}, 5), ["'correctness'", "-4", "sample 1"]),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(sample, words):
    with pytest.raises(ValueError, match=r".") as error:
        slime.post_process(arguments(), [SAMPLES[0], sample])
    for word in words:
        assert word in str(error.value)
