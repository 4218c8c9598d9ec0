"""The tabular world: its methods are the library's, and the study's main effect has the direction that it reports."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import saw
from recipes.study.tabular_study import BASE, PARTS, THRESHOLD, exact_weights, main, released_rule
from recipes.study.tabular_world import Objective, Rule, World, _gram, advantages, learn
from saw.report.seed_statistics import bootstrap_mean
from tests.conftest import ROOT
from tests.objectives import objectives

SMALL = World((Objective("a", 2, noise=0.5), Objective("b", 5)), prompts=8, steps=5)


@pytest.mark.parametrize(
    "rule",
    [
        *(Rule(name) for name in ("grpo", "gdpo", "saw_grpo", "saw_gdpo", "mo_grpo", "dvao")),
        Rule("saw_gdpo", {"informativeness": "advantage_entropy"}),
        Rule("saw_grpo", {"floor": 0.3, "max_change": 0.1, "ema": 0.5}),
        *(Rule(name) for name in ("corr_grpo", "corr_gdpo", "gd2po", "gd2po_snr", "tchebycheff", "hvo")),
        Rule("gradient_gdpo", {"gradient": {"lr": 1e-6}}),
        Rule("mgda"),
    ],
)
def test_the_world_uses_the_library_s_methods(rule):
    chance = torch.Generator().manual_seed(3)
    rewards = torch.rand(3, 32, 2, generator=chance, dtype=torch.float64)
    previous = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)
    method = advantages(SMALL, rule)
    gram = torch.tensor([[4.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
    found, weights, cv, spread, _ = method(rewards, torch.zeros(3, 32), previous, previous, False, gram.expand(3, 2, 2))
    groups = [i // 4 for i in range(32)]
    for seed in range(3):
        one = saw.compute_advantage(
            rewards[seed],
            groups,
            torch.ones(32, 1),
            method=rule.method,
            options=rule.options,
            objectives=objectives(minimum=[0, 0], maximum=[1, 1]),
            previous_weights=previous[seed],
            step=1,
            gram=gram,
        )
        np.testing.assert_allclose(found[seed], one.samples, atol=1e-12)
        np.testing.assert_allclose(weights[seed], one.weights, atol=1e-12)
        np.testing.assert_allclose(cv[seed], one.statistics.cv, atol=1e-12)
        np.testing.assert_allclose(spread[seed], 1 - one.statistics.zero_spread, atol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("ctwa", {"ctwa": {"targets": 0.9, "lr": 1.0}}),
        Rule("lagrangian", {"lagrangian": {"targets": (None, 0.9), "lr": 1.0}}),
        Rule("gradnorm"),
    ],
)
def test_the_world_hands_back_what_a_method_remembers(rule):
    rewards = torch.rand(2, 2, 32, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    half, gram = torch.full((2, 2), 0.5, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    method, none = advantages(SMALL, rule), torch.zeros(2, 32)
    _, used, _, _, memory = method(rewards[0], none, half, half, True, gram.expand(2, 2, 2))
    found, weights, *_ = method(rewards[1], none, half, used, False, gram.expand(2, 2, 2), memory)
    for seed in range(2):
        one = None
        for step in range(2):
            before = {} if one is None else {"memory": one.memory, "previous_weights": one.weights}
            one = saw.compute_advantage(
                rewards[step, seed],
                [i // 4 for i in range(32)],
                torch.ones(32),
                method=rule.method,
                options=rule.options,
                objectives=objectives(minimum=[0, 0], maximum=[1, 1]),
                gram=gram,
                **before,
            )
        np.testing.assert_allclose(weights[seed], one.weights, atol=1e-12)
        np.testing.assert_allclose(found[seed], one.samples, atol=1e-12)


@pytest.mark.parametrize("otherwise", ["minimum", "missing"])
def test_the_world_s_conditions_are_the_library_s(otherwise):
    gated = Objective("b", 5, requires={"a": 0.5}, otherwise=otherwise)
    world = World((Objective("a"), gated), prompts=8)
    rewards = torch.rand(1, 32, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    found, *_ = advantages(world, Rule("gdpo"))(rewards, torch.zeros(1, 32), half, half, True)
    chosen = [saw.Objective("a", 0.0), saw.Objective("b", 0.0, requires={"a": 0.5}, otherwise=otherwise)]
    one = saw.compute_advantage(
        rewards[0], [i // 4 for i in range(32)], torch.ones(32), method="gdpo", objectives=chosen
    )
    np.testing.assert_allclose(found[0], one.samples, atol=1e-12)


def test_the_gram_matrix_is_that_of_autograd():
    """Of the objectives' normalised advantages, through the logits of both choices."""
    chance = torch.Generator().manual_seed(6)
    rewards = torch.rand(1, 32, 2, generator=chance, dtype=torch.float64)
    logits = {k: torch.randn(1, n, generator=chance, dtype=torch.float64) for k, n in enumerate((2, 5))}
    choices = {k: torch.randint(0, values.shape[1], (1, 32), generator=chance) for k, values in logits.items()}
    log_probs = {k: values.log_softmax(dim=-1) for k, values in logits.items()}
    found = _gram(SMALL, Rule("mgda"), rewards, choices, log_probs)[0]
    own = saw.objective_advantages(rewards[0], [i // 4 for i in range(32)])
    gradients = []
    for k in range(2):
        leaves = [values.clone().requires_grad_() for values in logits.values()]
        total = sum(leaf.log_softmax(dim=-1)[0].take(choices[h][0]) for h, leaf in enumerate(leaves))
        (own[:, k] * total).mean().backward()
        gradients.append(torch.cat([leaf.grad.flatten() for leaf in leaves]))
    expected = torch.stack(gradients)
    torch.testing.assert_close(found, expected @ expected.T)


def test_objectives_that_share_a_choice_are_right_together():
    world = World((Objective("a", 3, pays=(0.8, 1.0, 0.0)), Objective("b", 3, shares=0, pays=(0.8, 0.0, 1.0))), steps=3)
    found = learn(world, Rule("gdpo"), 2)
    assert torch.equal(found.right[:, :, 0], found.right[:, :, 1])
    assert world.objectives[0].value(torch.tensor([2, 0, 1])).tolist() == [0.0, 0.8, 1.0]


def test_adaptive_steps_do_not_feel_the_size_of_the_advantages():
    """GDPO without whitening is MO-GRPO; without the option the steps are others."""
    world = World((Objective("a", 4), Objective("b", 4)), prompts=8, steps=4, adaptive=True)
    first = learn(world, Rule("mo_grpo"), 3).right
    second = learn(
        world, Rule("static_gdpo", {"static_weights": (1.0, 1.0), "profile": {"whitening": "none"}}), 3
    ).right
    torch.testing.assert_close(first, second)
    half = learn(replace(world, adaptive=False), Rule("mo_grpo"), 3).right
    assert not torch.allclose(first, half)


def test_a_penalty_reaches_only_who_feels_it():
    world = World(SMALL.objectives, prompts=8, penalty=0.5)
    rewards, zeros = torch.rand(1, 32, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    penalty = torch.rand(1, 32, dtype=torch.float64)
    feels, ignores = (advantages(world, Rule("grpo", feels_penalty=value)) for value in (True, False))
    assert not torch.allclose(
        feels(rewards, penalty, zeros, zeros, True)[0], ignores(rewards, penalty, zeros, zeros, True)[0]
    )
    plain = advantages(SMALL, Rule("grpo"))(rewards, penalty, zeros, zeros, True)[0]
    assert torch.equal(ignores(rewards, penalty, zeros, zeros, True)[0], plain)


def test_the_kl_study_takes_the_penalty_off_the_sum_of_the_rewards():
    """Kind: a penalty at the wrong scale, because only the rewards or only the penalty are divided."""
    world = World(SMALL.objectives, prompts=1, penalty=0.5)
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    penalty = torch.tensor([[0.5, 0.25, 0.0, -0.25]], dtype=torch.float64)
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    found, *_ = advantages(world, released_rule("grpo", True))(rewards, penalty, half, half, True)
    total = np.array([0.5, -0.25, 2.0, 1.25])  # c + f - penalty
    np.testing.assert_allclose(found[0], (total - total.mean()) / (total.std(ddof=1) + 1e-6), atol=1e-12)
    ignores, *_ = advantages(world, released_rule("saw_grpo", False))(rewards, penalty, half, half, True)
    total = rewards[0].numpy().sum(axis=1)  # both objectives vary alike: SAW's weights are 1 and 1 of 2
    np.testing.assert_allclose(ignores[0], (total - total.mean()) / (total.std(ddof=1) + 1e-6), atol=1e-12)


def test_first_policy_and_rewards_are_what_the_world_says():
    objective = Objective("a", options=4, start=0.7, noise=0.5)
    assert objective.first_logits().softmax(dim=0).tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])
    chance = torch.Generator().manual_seed(0)
    rewards = objective.reward(torch.ones(10_000, dtype=torch.bool), chance)
    assert rewards.min() >= 0.5
    assert rewards.mean().item() == pytest.approx(0.75, abs=0.01)
    luck = Objective("b", luck=0.1).reward(torch.ones(10_000, dtype=torch.bool), chance)
    assert luck.mean().item() == pytest.approx(0.1, abs=0.01)


def test_exact_weights_are_those_of_a_huge_batch():
    world = World((Objective("a", 2, start=0.9, noise=0.6), Objective("b", 20, offset=0.2)), prompts=50_000, steps=1)
    found = learn(world, Rule("saw_grpo"), seeds=2)
    np.testing.assert_allclose(found.weights[:, 0], exact_weights(world, found.right[:, 0]), atol=0.005)


def test_the_same_seeds_see_the_same_samples():
    first, second = (learn(SMALL, Rule("grpo"), 4).right for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, learn(SMALL, Rule("grpo"), 4, first_seed=1).right)


@pytest.mark.parametrize("method", ["saw_grpo", "saw_gdpo"])
@pytest.mark.parametrize("profile", ["paper", "released"])
def test_a_window_s_weights_are_those_of_its_batches_as_one(method, profile):
    """Kind: a deviation that forgets the distance between the batches' means, or a window that is one too long."""
    chance = torch.Generator().manual_seed(5)
    batches = torch.rand(4, 3, 32, 2, generator=chance, dtype=torch.float64) * torch.tensor([0.5, 1.0])
    batches += torch.arange(4)[:, None, None, None] * 0.1
    rule = Rule(method, {"profile": profile}, window=3)
    one_step, memory = advantages(SMALL, rule), {}
    even = torch.full((3, 2), 0.5, dtype=torch.float64)
    for step, rewards in enumerate(batches):
        _, weights, _, _, memory = one_step(rewards, torch.zeros(3, 32), even, even, step == 0, None, memory)
        last = batches[max(step - 2, 0) : step + 1]
        for seed in range(3):
            together = last[:, seed].flatten(0, 1)
            whole = saw.compute_advantage(
                together,
                [i // 4 for i in range(len(together))],
                torch.ones(len(together)),
                method=method,
                options=rule.options,
                objectives=objectives(minimum=[0, 0], maximum=[1, 1]),
            )
            np.testing.assert_allclose(weights[seed], whole.weights, atol=1e-12)


def test_saw_brings_the_late_objective_forward_and_the_early_one_back():
    """The study's main effect, on 60 seeds: the margins are a third of what 300 seeds show."""
    found = {name: learn(BASE, Rule(name), 60) for name in ("gdpo", "saw_gdpo")}
    steps = {name: [t.reached(k, THRESHOLD).numpy() for k in (0, 1)] for name, t in found.items()}
    early, late = (bootstrap_mean(steps["saw_gdpo"][k] - steps["gdpo"][k]) for k in (0, 1))
    assert late.high < -10
    assert early.low > 8


def test_objectives_that_move_together_are_weighed_the_same():
    world = World((Objective("a", 8, noise=0.6), Objective("b", 8, noise=0.6)), steps=60)
    weights = learn(world, Rule("saw_gdpo"), 100).weights.mean(dim=(0, 1))
    assert weights.tolist() == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts", [[name for name in PARTS if name != "methods"], pytest.param(["methods"], marks=pytest.mark.full)]
)
def test_every_part_of_the_study_runs(tmp_path, monkeypatch, parts):
    """With 60 of its 150 to 400 steps, more than the 50 that a part looks ahead; ``methods`` has its own processes."""
    for module, prompts in (("tabular_study", (2, 4)), ("tabular_window", (2,))):
        monkeypatch.setattr(f"recipes.study.{module}.PROMPTS", prompts)
        monkeypatch.setattr(
            f"recipes.study.{module}.learn", lambda world, rule, seeds: learn(replace(world, steps=60), rule, seeds)
        )
    main(["--seeds", "3", "--out", str(tmp_path), *(word for name in parts for word in ("--only", name))])
    for name in parts:
        assert "commit" in (tmp_path / f"{name}.md").read_text()
        assert len((tmp_path / f"{name}.csv").read_text().splitlines()) > 2


SHOWN = {
    "speeds": ["early_steps", "late_steps", "both_steps"],
    "falsifier": ["difference"],
    "misleading": ["good_difference"],
    "batch_size": ["early_steps", "late_steps"],
    "window": ["early_steps", "late_steps", "final_reward"],
    "kl": ["early_steps", "early_final", "late_steps", "late_final"],
    "signal": ["both", "within_early", "within_late", "with_spread"],
    "methods": ["steps", "area"],
}


@pytest.mark.parametrize("part", PARTS)
def test_the_committed_tables_are_what_the_committed_numbers_give(part):
    folder = ROOT / "results" / "study" / "tabular"
    text = (folder / f"{part}.md").read_text()
    with (folder / f"{part}.csv").open() as file:
        rows = list(csv.DictReader(file))
    shown = re.findall(r"(-?\d+\.(\d+)) \[(-?[\d.]+), (-?[\d.]+)\]", text)
    for row in rows:
        for name in SHOWN[part]:
            kept = [float(row[f"{name}{end}"]) for end in ("", "_low", "_high")]
            assert any(  # the CSV is rounded too, so the last digit shown may differ by one
                all(
                    abs(float(one) - other) <= 0.5 * 10.0 ** -len(digits) + 1e-4
                    for one, other in zip(cell, kept, strict=True)
                )
                for mean, digits, low, high in shown
                for cell in [(mean, low, high)]
            ), (name, row)
    assert "commit" in text
    assert "scripts/study.sh tabular" in text
