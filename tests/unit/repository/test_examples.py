"""The examples run, with the command that each of them shows."""

import math
import os
import re
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from verl import DataProto
from verl.trainer.ppo.reward import get_custom_reward_fn

import saw
from saw.method import registry
from saw.verl.config_checks import check_config
from saw.verl.reward_manager import MultiRewardManager
from tests.configs import compose
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
CALL = '<tool_call>\n{"name": "get_weather", "parameters": {"city": "Oslo"}}\n</tool_call>'


def shown_command(example: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the arguments of the ``saw train`` command that an example shows."""
    text = (EXAMPLES / example).read_text().replace("\\\n", "")
    ((environment, arguments),) = re.findall(r"^[# ]*(.*?)bash scripts/run.sh saw train (.*)$", text, re.M)
    return dict(pair.split("=") for pair in environment.split()), shlex.split(arguments)


class Tokenizer:
    """Decodes every response to one text."""

    def __init__(self, text: str):
        self.text = text

    def decode(self, ids, skip_special_tokens=True):
        return self.text


def one_sample(ground_truth: str) -> DataProto:
    """One response, as a reward worker gets it."""
    rows = {"data_source": ["rlla"], "reward_model": [{"ground_truth": ground_truth}], "global_steps": [1]}
    return DataProto.from_dict(
        tensors={"responses": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 6, dtype=torch.long)},
        non_tensors={key: np.array(value, dtype=object) for key, value in rows.items()},
    )


@pytest.mark.parametrize(
    ("response", "ground_truth", "right_tool", "brevity"),
    [
        (CALL, CALL, 1.0, 1 - 7 / 40),
        (CALL.replace("get_weather", "play_music"), CALL, 0.0, 1 - 7 / 40),
        ("word " * 50, CALL, 0.0, 0.0),
        ("You are welcome.", "<response> You are welcome. </response>", math.nan, 1 - 3 / 40),
    ],
    ids=["right", "wrong tool", "too long", "no tool wanted"],
)
def test_own_reward(monkeypatch, toy_data, response, ground_truth, right_tool, brevity):
    """The command passes the checks of a start, and the reward worker gets each objective of each sample."""
    monkeypatch.chdir(ROOT)
    _, overrides = shown_command("own_reward.py")
    config = compose(*overrides, f"data.train_files={toy_data[0]}")
    settings = check_config(config)
    assert [(objective.name, objective.priority) for objective in settings.objectives] == [
        ("right_tool", 1.0),
        ("brevity", 0.5),
    ]
    manager = MultiRewardManager(config, Tokenizer(response), get_custom_reward_fn(config))
    rewards = manager.loop.run_until_complete(manager.run_single(one_sample(ground_truth)))["reward_extra_info"]
    assert [rewards["right_tool"], rewards["brevity"]] == pytest.approx([right_tool, brevity], nan_ok=True)


@pytest.fixture
def own_weighting(monkeypatch):
    """The example's functions, registered until the test ends."""
    for name in ("METHODS", "MEASURES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    return runpy.run_path(str(EXAMPLES / "own_weighting.py"))


OBJECTIVES = [saw.Objective("learned", 0, 1), saw.Objective("late", -3, 3)]
REWARDS = torch.tensor([[1.0, -3.0], [0.9, 0.0], [1.0, 0.0], [0.9, -3.0]], dtype=torch.float64)


def test_own_weighting(own_weighting):
    """The means are 0.05 and 0.75 of the range below the maximum."""
    result = saw.compute_advantage(REWARDS, [0, 0, 1, 1], torch.ones(4), method="lagging_gdpo", objectives=OBJECTIVES)
    assert result.weights.tolist() == pytest.approx([1 / (1 + math.exp(2.8)), 1 / (1 + math.exp(-2.8))])
    missing = REWARDS.clone()
    missing[:, 0] = math.nan
    result = saw.compute_advantage(missing, [0, 0, 1, 1], torch.ones(4), method="lagging_grpo", objectives=OBJECTIVES)
    assert result.weights.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"options\.max_change is 0\.1, and lagging_gdpo does not read it"):
        saw.compute_advantage(
            REWARDS, [0] * 4, torch.ones(4), method="lagging_gdpo", objectives=OBJECTIVES, options={"max_change": 0.1}
        )


@pytest.mark.parametrize("over", ["batch", "group"])
def test_own_measure(own_weighting, over):
    options = {"informativeness": "headroom", "over": over}
    result = saw.compute_advantage(
        REWARDS, [0, 0, 1, 1], torch.ones(4), method="saw_gdpo", objectives=OBJECTIVES, options=options
    )
    assert result.weights.tolist() == pytest.approx([0.05 / 0.8, 0.75 / 0.8])  # the groups' means are alike


@pytest.mark.parametrize(
    "overrides", [[], ["saw.method=saw_gdpo", "saw.options.informativeness=headroom"]], ids=["weighting", "measure"]
)
def test_own_weighting_passes_the_checks_of_a_start(own_weighting, toy_data, overrides):
    _, shown = shown_command("own_weighting.py")
    assert check_config(compose(*shown, *overrides, f"data.train_files={toy_data[0]}"))


@pytest.mark.slow
def test_every_process_of_a_training_imports_the_own_weighting():
    environment, _ = shown_command("own_weighting.py")
    path = os.pathsep.join([environment.pop("PYTHONPATH").replace("$PWD", str(ROOT)), str(ROOT)])
    code = "import verl, saw; assert {'lagging_grpo', 'lagging_gdpo'} < set(saw.METHODS), list(saw.METHODS)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | environment | {"PYTHONPATH": path}, check=True)


def test_own_data_and_experiment(monkeypatch, tmp_path):
    """The experiment composes on top of the shipped tree, and the data set suits its reward function."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.setattr(sys, "argv", ["own_data.py", "runs/own/train.parquet"])
    runpy.run_path("examples/own_data.py", run_name="__main__")
    _, (option, folder, *overrides) = shown_command("experiment/own.yaml")
    assert option == "--config-dir"
    config = compose(f"hydra.searchpath=[pkg://verl.trainer.config,file://{tmp_path / folder}]", *overrides)
    assert check_config(config).names == ("right_tool", "brevity")
    score = get_custom_reward_fn(config)
    for row in Dataset.from_parquet(config.data.train_files):
        truth = row["reward_model"]["ground_truth"]
        rewards = score(data_source=row["data_source"], solution_str=truth, ground_truth=truth)
        assert rewards == {"right_tool": 1.0, "brevity": pytest.approx(0.9)}


@pytest.mark.parametrize("arguments", [[], ["one.parquet", "two.parquet"], ["rows.json"]])
def test_own_data_says_what_it_needs(monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own_data.py", *arguments])
    with pytest.raises(SystemExit, match=r"own_data\.py runs/own/train\.parquet"):
        runpy.run_path(str(EXAMPLES / "own_data.py"), run_name="__main__")
    assert not list(tmp_path.iterdir())


def test_plain_torch(capsys):
    """The learned objective gets the small weight, and the numbers are those of the formulas."""
    runpy.run_path(str(EXAMPLES / "plain_torch.py"), run_name="__main__")
    printed = capsys.readouterr().out
    shown = dict(re.findall(r"^(\w+): CV \S+, weight (\S+)$", printed, re.M))
    correctness, format_ = torch.tensor([3, 2.5, 3, 2, 3, 3, 2.5, 2.5]) + 3, torch.tensor([0.0, 0, 1, 0, 0, 1, 0])
    cv = [float(reward.std() / reward.mean()) for reward in (correctness, format_)]
    assert {name: float(weight) for name, weight in shown.items()} == pytest.approx(
        {"correctness": cv[0] / sum(cv), "format": cv[1] / sum(cv)}, abs=0.005
    )
    assert len(re.findall(r"-?\d+\.\d+", printed.splitlines()[-1])) == 8
