"""Profiles: the constants of other implementations, checked against those, and a user's own.

The released code is compared in test_golden_advantages.py, TRL in tests/contract/test_trl.py.
"""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pydantic import ValidationError
from verl.trainer.ppo.core_algos import compute_gdpo_outcome_advantage, compute_grpo_outcome_advantage

import saw
from saw.method.advantage import objective_advantages
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from tests.configs import compose
from tests.objectives import objectives

N, T = 22, 7
GROUPS = [f"p{i // 4}" for i in range(N - 2)] + ["alone", "alone too"]
#: One prompt; both objectives have mean 1, deviations (-1, 0, 1, 0) and (-1, -1, 2, 0).
REWARDS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
FIRST, SECOND = np.array([-1.0, 0, 1, 0]), np.array([-1.0, -1, 2, 0])


def random_step(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of two objectives, in eighths and with some groups without spread, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(-24, 25, (N, 2), generator=generator).float() / 8
    rewards[:4, 0] = 0.5
    lengths = torch.randint(1, T + 1, (N, 1), generator=generator)
    return rewards, (torch.arange(T) < lengths).float()


@pytest.mark.parametrize("seed", range(5))
def test_verl_s_own_grpo(seed):
    rewards, mask = random_step(seed)
    scores = torch.zeros(N, T)
    scores[:, 0] = rewards.sum(dim=1)
    expected, _ = compute_grpo_outcome_advantage(scores.clone(), mask, np.array(GROUPS))
    found = saw.compute_advantage(rewards, GROUPS, mask, method="grpo", options={"profile": "verl"})
    torch.testing.assert_close(found.tokens, expected, atol=1e-6, rtol=1e-6)
    paper = saw.compute_advantage(rewards, GROUPS, mask, method="grpo")
    assert not torch.allclose(paper.tokens, expected, atol=1e-2)  # a group of one


@pytest.mark.parametrize("seed", range(5))
def test_verl_s_own_gdpo(seed):
    rewards, mask = random_step(seed)
    names = ("a", "b")
    expected, _ = compute_gdpo_outcome_advantage(
        torch.zeros(N, T),
        mask,
        np.array(GROUPS),
        config={"gdpo_reward_keys": list(names)},
        non_tensor_batch={name: column.numpy() for name, column in zip(names, rewards.T, strict=True)},
        batch={"prompts": torch.zeros(N, 1), "attention_mask": torch.cat([torch.ones(N, 1), mask], dim=1).long()},
    )
    found = saw.compute_advantage(rewards, GROUPS, mask, method="gdpo", options={"profile": "verl"})
    torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ each constant, by hand


def samples(method: str, rewards: torch.Tensor = REWARDS, lengths=(1, 2, 3, 6), **profile) -> np.ndarray:
    return saw.compute_advantage(
        rewards, ["p"] * len(rewards), torch.tensor(lengths), method=method, options={"profile": profile}
    ).samples.numpy()


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_the_constants_of_a_group(ddof, eps):
    spread = [math.sqrt(2 / (4 - ddof)), math.sqrt(6 / (4 - ddof))]
    expected = FIRST / (spread[0] + eps) + SECOND / (spread[1] + eps)
    np.testing.assert_allclose(samples("mo_grpo", ddof=ddof, group_eps=eps), expected, rtol=1e-12)
    total = FIRST + SECOND
    expected = total / (math.sqrt(total @ total / (4 - ddof)) + 2 * eps)  # the weights sum to 1: half the total
    np.testing.assert_allclose(samples("grpo", ddof=ddof, group_eps=eps), expected, rtol=1e-12)
    expected = total / (math.sqrt(total @ total / (4 - ddof)) + eps)
    both = {"ddof": ddof, "group_eps": eps, "sum_of_weights": "objectives"}
    np.testing.assert_allclose(samples("grpo", **both), expected, rtol=1e-12)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("on", ["variance", "std"])
@pytest.mark.parametrize("over", ["tokens", "samples", "none"])
def test_the_constants_of_whitening(over, on, ddof):
    lengths = np.array([1, 2, 3, 6])
    own = {"ddof": ddof, "whitening": over, "whitening_eps": 0.25, "whitening_eps_on": on}
    combined = samples("mo_grpo", ddof=ddof)
    values = {"tokens": np.repeat(combined, lengths), "samples": combined, "none": None}[over]
    if values is None:
        expected = combined
    else:
        variance = values.var(ddof=ddof)
        scale = math.sqrt(variance + 0.25) if on == "variance" else math.sqrt(variance) + 0.25
        expected = (combined - values.mean()) / scale
    np.testing.assert_allclose(samples("gdpo", lengths=lengths, **own), expected, atol=1e-12)


def test_the_cv_has_the_profile_s_ddof_and_constants():
    own = {"profile": {"ddof": 0, "cv_shift": 0.5, "cv_eps": 0.25}}
    statistics = saw.compute_advantage(
        REWARDS, ["p"] * 4, torch.ones(4), method="saw_grpo", objectives=objectives(minimum=[0, 0]), options=own
    ).statistics
    assert statistics.std.tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(1.5)])
    assert statistics.cv.tolist() == pytest.approx([math.sqrt(0.5) / 1.75, math.sqrt(1.5) / 1.75])


def test_a_sample_without_a_reward_is_left_out_of_whitening_over_samples():
    rated = samples("gdpo", whitening="samples")
    lost = torch.cat([REWARDS, torch.full((1, 2), math.nan, dtype=torch.float64)])
    with_lost = samples("gdpo", lost, lengths=(1, 2, 3, 6, 4), whitening="samples")
    np.testing.assert_allclose(with_lost, [*rated, 0.0], rtol=1e-12)


def test_an_empty_response_counts_as_a_sample_but_not_as_tokens():
    plain = samples("gdpo", whitening="samples")
    np.testing.assert_allclose(samples("gdpo", lengths=(0, 2, 3, 6), whitening="samples"), plain, rtol=1e-12)
    assert not np.allclose(samples("gdpo", lengths=(0, 2, 3, 6)), samples("gdpo"))


def test_the_advantages_of_each_objective_have_the_profile_too():
    found = objective_advantages(REWARDS, ["p"] * 4, options={"profile": {"ddof": 0, "group_eps": 0.5}})
    np.testing.assert_allclose(found[:, 0], FIRST / (math.sqrt(0.5) + 0.5), rtol=1e-12)


# ------------------------------------------------------------------ a user's own


def test_an_own_profile_may_be_given_whole_or_as_what_differs():
    for name, profile in saw.PROFILES.items():
        spelt = profile.model_dump()
        differing = {key: value for key, value in spelt.items() if value != getattr(saw.Profile(), key)}
        results = [
            saw.compute_advantage(REWARDS, [0, 0, 1, 2], torch.ones(4), method="saw_gdpo", options={"profile": given})
            for given in (name, profile, spelt, differing)
        ]
        for other in results[1:]:
            assert torch.equal(other.samples, results[0].samples), name


def test_an_own_profile_in_a_configuration():
    config = compose("saw.options.profile={group_eps: 1e-4, whitening: samples}")
    numerics = check_config(config).options.numerics
    assert (numerics.group_eps, numerics.whitening, numerics.ddof) == (1e-4, "samples", 1)
    assert check_config(compose("saw.options.profile=trl")).options.numerics == saw.PROFILES["trl"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("new", ["'new'", "paper, released, verl, trl"]),
        (3, ["3", "paper, released, verl, trl"]),
        (None, ["None"]),
        ({"eps": 1e-4}, ["'eps'", "group_eps", "whitening_eps"]),
        ({"group_eps": 0.0}, ["group_eps is 0.0", "greater than 0"]),
        ({"group_eps": math.nan}, ["group_eps is nan", "finite"]),
        ({"ddof": 2}, ["ddof is 2", "0 or 1"]),
        ({"whitening": "words"}, ["whitening is 'words'", "'tokens', 'samples' or 'none'"]),
        ({"lone_sample": "zero", "cv_eps": -1, "group_eps": "x"}, ["cv_eps is -1", "group_eps is 'x'"]),
    ],
)
def test_a_wrong_profile_is_named(given, words):
    for error, build in ((ValidationError, saw.Options), (ConfigError, in_a_configuration)):
        with pytest.raises(error) as raised:
            build(profile=given)
        for word in ["profile", *words]:
            assert word in str(raised.value)


def in_a_configuration(profile) -> Settings:
    section = {"method": "gdpo", "objectives": {"a": {"minimum": 0}}, "options": {"profile": profile}}
    return Settings.of(OmegaConf.create({"saw": section}))
