"""docs/hosts.md: every cell has its test; and the plug-in file for ms-swift, without ms-swift."""

import json
import re
import runpy
import sys
from types import ModuleType

import pytest
import torch

import saw
from tests.conftest import GOLDEN, ROOT

PAGE = (ROOT / "docs" / "hosts.md").read_text()


def test_every_cell_of_the_table_has_its_test():
    """Kind: a promise of the page that nothing checks."""
    rows = re.findall(r"^\| (?!host|-)(.*) \|$", PAGE, re.M)
    assert len(rows) >= 5
    for row in rows:
        host, *cells = row.split(" | ")
        for cell in cells:
            assert (found := re.fullmatch(r".*\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", cell)), f"{host}: {cell}"
            assert f"def {found[1]}(" in (ROOT / found[2]).read_text(), f"{host}: {cell}"


@pytest.fixture
def swift_plugin(monkeypatch):
    """The example's names, loaded as ms-swift loads a plug-in file; and the module that it changes."""
    trainer = ModuleType("swift.rlhf_trainers.grpo_trainer")
    for name, module in {
        "swift": ModuleType("swift"),
        "swift.rlhf_trainers": ModuleType("swift.rlhf_trainers"),
        "swift.rlhf_trainers.grpo_trainer": trainer,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["swift.rlhf_trainers"].grpo_trainer = trainer
    return runpy.run_path(str(ROOT / "examples" / "swift_plugin.py")), trainer


#: ms-swift's scale_rewards -> the method and the constants that are the same.
SAME = {
    "group": ("grpo", {"sum_of_weights": "objectives", "group_eps": 1e-4}),
    "gdpo": ("gdpo", {"group_eps": 1e-8, "whitening": "samples", "whitening_eps": 1e-8, "whitening_eps_on": "std"}),
}


@pytest.mark.parametrize("case", json.loads((GOLDEN / "swift_advantages.json").read_text())["cases"])
def test_swift_s_own_advantages(swift_plugin, case):
    """With missing rewards too, which ms-swift leaves out in its gdpo."""
    names, trainer = swift_plugin
    method, profile = SAME[case["scale_rewards"]]
    function = trainer.compute_advantages
    assert function is names["compute_advantages"]
    changed = {
        "METHOD": method,
        "OBJECTIVES": [saw.Objective(name) for name in "ab"],
        "OPTIONS": saw.Options(profile=profile),
    }
    function.__globals__.update(changed)  # the three constants that a user edits
    rewards = torch.tensor([[float("nan") if value is None else value for value in row] for row in case["rewards"]])
    found, logged = function(rewards, torch.tensor(case["reward_weights"]), case["num_generations"])
    torch.testing.assert_close(found, torch.tensor(case["advantages"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(logged, (rewards * torch.tensor(case["reward_weights"])).nansum(dim=1))


def test_what_the_plug_in_file_of_swift_cannot_do_is_refused(swift_plugin):
    _, trainer = swift_plugin
    rewards = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="--advantage_estimator is 'rloo'"):
        trainer.compute_advantages(rewards, torch.ones(2), 4, advantage_estimator="rloo")
    with pytest.raises(ValueError, match="--kl_in_reward"):
        trainer.compute_advantages(rewards, torch.ones(2), 4, kl_in_reward=True, beta=0.1)
    with pytest.raises(ValueError, match="varying number of samples"):
        trainer.compute_advantages_dynamic(rewards)
    for change, message in (
        ({"METHOD": "gradient_gdpo"}, "policy gradients"),
        ({"METHOD": "ctwa"}, "method is 'ctwa', which remembers.*ms-swift keeps nothing"),
        ({"OPTIONS": saw.Options(ema=0.5)}, r"options\.ema is 0\.5.*ms-swift keeps nothing"),
        ({"OBJECTIVES": (saw.Objective("format", turn=2),)}, "'format' belongs to turn 2"),
    ):
        names = trainer.compute_advantages.__globals__
        before = {name: names[name] for name in change}
        names.update(change)
        with pytest.raises(ValueError, match=message):
            trainer.compute_advantages(rewards, torch.ones(2), 4)
        names.update(before)


def test_a_missing_reward_is_left_out_in_swift(swift_plugin):
    _, trainer = swift_plugin
    rewards = torch.tensor([[1.0, float("nan")], [3.0, 1.0], [-1.0, 0.0], [1.0, 0.5]])
    found, _ = trainer.compute_advantages(rewards, torch.ones(2), 4)
    objectives = [saw.Objective("correctness", -3, 3), saw.Objective("format", 0, 1)]
    expected = saw.compute_advantage(
        rewards,
        [0] * 4,
        torch.ones(4),
        method="saw_gdpo",
        objectives=objectives,
        options={"profile": {"whitening": "samples"}},
    )
    torch.testing.assert_close(found, expected.samples.float())
