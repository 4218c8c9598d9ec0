"""The examples run, with the command that each of them shows."""

import ast
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.trainer.ppo.reward import get_custom_reward_fn

from saw.verl.reward_manager import MultiRewardManager
from saw.verl.settings import check_config
from tests.configs import compose
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
CALL = '<tool_call>\n{"name": "get_weather", "parameters": {"city": "Oslo"}}\n</tool_call>'


def shown_overrides(example: Path) -> list[str]:
    """The overrides of the ``python -m saw.train`` command in an example's docstring."""
    docstring = ast.get_docstring(ast.parse(example.read_text()))
    (command,) = [part for part in docstring.split("\n\n") if "python -m saw.train" in part]
    return shlex.split(command.partition("python -m saw.train")[2])


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
    config = compose(*shown_overrides(EXAMPLES / "own_reward.py"), f"data.train_files={toy_data[0]}")
    settings = check_config(config)
    assert [(objective.name, objective.priority) for objective in settings.objectives] == [
        ("right_tool", 1.0),
        ("brevity", 0.5),
    ]
    manager = MultiRewardManager(config, Tokenizer(response), get_custom_reward_fn(config))
    rewards = manager.loop.run_until_complete(manager.run_single(one_sample(ground_truth)))["reward_extra_info"]
    assert [rewards["right_tool"], rewards["brevity"]] == pytest.approx([right_tool, brevity], nan_ok=True)
