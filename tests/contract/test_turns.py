"""Turns of verl's agent loop: a calculator is called for real, and each turn's reward reaches that turn's tokens only.

The model is replaced by a script; the agent loop, the tool, the tokenizer and the reward manager are the real ones.
"""

import asyncio
import inspect
import math

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.tools.tool_registry import load_all_tools
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from examples.calculator.prepare import call, dialogues, question, write_data
from recipes.quickstart.toy_model import train_tokenizer
from saw import Objective
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from saw.verl.estimator import StepRewards, estimate, rewards_of_step
from saw.verl.reward_manager import MultiRewardManager
from saw.verl.transfer_queue import checked_objective_matrix, checked_turns, scored_rows
from tests.configs import compose
from tests.conftest import ROOT

TOOL = str(ROOT / "examples/calculator/tool.py")
#: Four dialogues about 3 + 4: what the model says in each turn.
SCRIPTS = {
    "right": [call("3 + 4"), "7"],
    "wordy": [call("3 + 4"), "It is 7."],
    "error": [call("3 plus 4"), "7"],
    "alone": ["8"],
}


@pytest.fixture(scope="module")
def config():
    folder = f"file://{ROOT / 'examples'}"
    made = compose(f"hydra.searchpath=[pkg://verl.trainer.config,{folder}]", "experiment=calculator")
    made.actor_rollout_ref.rollout.multi_turn.function_tool_path = TOOL
    made.reward.custom_reward_function.path = str(ROOT / "examples/calculator/reward.py")
    return made


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(dialogues(64, seed=0))


class Script:
    """A server that says the next line."""

    def __init__(self, tokenizer, lines):
        self.tokenizer, self.lines = tokenizer, list(lines)

    async def generate(self, **request):
        ids = self.tokenizer.encode(self.lines.pop(0) + self.tokenizer.eos_token)
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids))


@pytest.fixture(scope="module")
def dialogue(config, tokenizer):
    """Each script's output of verl's agent loop."""
    tools = load_all_tools(None, TOOL)

    async def run(lines):
        loop = ToolAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=Script(tokenizer, lines),
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2",
            tools=ToolListWrap(tools),
        )
        return await loop.run({}, raw_prompt=question(3, 4))

    return {name: asyncio.run(run(lines)) for name, lines in SCRIPTS.items()}


@pytest.fixture(scope="module")
def rewards(config, tokenizer, dialogue):
    """What the reward worker makes of each dialogue; its arguments are those of ``_compute_score``."""
    manager = MultiRewardManager(config, tokenizer, get_custom_reward_fn(config))

    def score(output):
        prompt, response = torch.tensor(output.prompt_ids), torch.tensor(output.response_ids)
        row = {
            "data_source": "calculator",
            "reward_model": {"ground_truth": "7"},
            "extra_info": {"index": 0},
            "global_steps": 1,
            "__num_turns__": output.num_turns,
            "tool_extra_fields": output.extra_fields,
        }
        data = DataProto.from_dict(
            tensors={
                "responses": response[None],
                "attention_mask": torch.ones(1, len(prompt) + len(response), dtype=torch.long),
            },
            non_tensors={key: np.array([value], dtype=object) for key, value in row.items()},
        )
        return manager.loop.run_until_complete(manager.run_single(data))["reward_extra_info"]

    return {name: score(output) for name, output in dialogue.items()}


def test_a_reward_worker_is_told_of_turns_and_tools():
    source = inspect.getsource(agent_loop.AgentLoopWorker._compute_score)
    assert '"tool_extra_fields": np.array([o.extra_fields for o in outputs]' in source
    assert '"__num_turns__": np.array([o.num_turns for o in outputs])' in source


def test_the_mask_is_1_on_what_the_model_said(dialogue, tokenizer):
    for name, output in dialogue.items():
        ids, own = np.array(output.response_ids), np.array(output.response_mask, dtype=bool)
        said = [line + tokenizer.eos_token for line in SCRIPTS[name]]
        assert tokenizer.decode(ids[own]) == "".join(said), name
        assert len(ids) == len(own)
    others = [
        tokenizer.decode(np.array(each.response_ids)[np.array(each.response_mask) == 0]) for each in dialogue.values()
    ]
    assert others[:2] == ["\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n"] * 2
    assert "\nerror: invalid syntax" in others[2]
    assert others[3] == ""


def test_the_calculator_s_own_reward_and_the_number_of_turns(dialogue):
    assert {name: each.extra_fields["tool_rewards"] for name, each in dialogue.items()} == {
        "right": [1.0],
        "wordy": [1.0],
        "error": [0.0],
        "alone": [],
    }
    assert all(each.extra_fields["turn_scores"] == [] for each in dialogue.values())
    assert [each.num_turns for each in dialogue.values()] == [4, 4, 4, 2]


def test_each_turn_is_rewarded(rewards):
    found = {name: [each["call"], each["plain"], each["correct"]] for name, each in rewards.items()}
    expected = {"right": [1, 1, 1], "wordy": [1, 0, 0], "error": [0, 1, 1], "alone": [0, math.nan, 0]}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, nan_ok=True), name


def step_of(config, dialogue, rewards) -> tuple[StepRewards, torch.Tensor]:
    """The trainer's part: rewards and masks of TransferQueue, as they are before the estimator is called."""
    settings = Settings.of(config)
    masks = torch.nested.as_nested_tensor(
        [torch.tensor(each.response_mask) for each in dialogue.values()], layout=torch.jagged
    )
    scored, of_row = scored_rows([f"p_{row}_0" for row in range(len(dialogue))], [{}] * len(dialogue))
    matrix = checked_objective_matrix(list(rewards.values()), settings)
    objectives = [Objective(each.name, 0.0, 1.0, each.priority, each.turn) for each in settings.objectives]
    turns = checked_turns(masks, matrix, scored, of_row, settings)
    return StepRewards(settings, objectives, 1, None, matrix, scored, of_row, turns=turns), masks.to_padded_tensor(0)


def test_advantages_are_on_the_model_s_own_tokens_and_a_turn_s_only_on_that_turn(config, dialogue, rewards):
    found = {}
    for name in ("all", "call", "plain", "correct"):
        step, mask = step_of(config, dialogue, rewards)
        if name != "all":  # the others are flat, and their normalised advantages 0
            others = [place for place, each in enumerate(step.settings.names) if each != name]
            present = ~step.rewards[:, others].isnan()
            step.rewards[:, others] = torch.where(present, 1.0, torch.nan).double()
        step.settings = step.settings.model_copy(update={"method": "mo_grpo"})
        with rewards_of_step(step):
            found[name], _ = estimate(torch.zeros(mask.shape), mask, index=np.array(["p"] * 4, dtype=object))
        assert not found[name][mask == 0].any()
    turns = step.turns
    assert found["call"][turns == 1].all()
    assert not found["call"][turns == 2].any()
    assert found["plain"][turns == 2].all()
    assert not found["plain"][turns == 1].any()
    assert found["correct"][turns > 0].all()
    torch.testing.assert_close(found["all"], found["call"] + found["plain"] + found["correct"])


def test_turns_beside_padding_and_with_several_outputs(config, dialogue, rewards):
    """A padding row gets no advantage; turns are not counted over several outputs of a session."""
    keys, tags = [*(f"p_{row}_0" for row in range(4)), "pad_0_0"], [*[{}] * 4, {"is_padding": True}]
    dialogue, rewards = {**dialogue, "pad": dialogue["alone"]}, {**rewards, "pad": rewards["alone"]}
    step, mask = step_of(config, dialogue, rewards)
    scored, of_row = scored_rows(keys, tags)
    step.scored, step.scored_of_row = scored, of_row
    with rewards_of_step(step):
        tokens, _ = estimate(torch.zeros(mask.shape), mask, index=np.array(["p"] * 4 + ["pad"], dtype=object))
    assert not tokens[4].any()
    assert tokens[:4][mask[:4] == 1].any()
    scored, of_row = scored_rows(["p_0_0", "p_0_1", "p_1_0"], [{}] * 3)
    with pytest.raises(ConfigError, match=r"several outputs for a sample, and saw.objectives has 'call', 'plain' with"):
        checked_turns(mask, step.rewards, scored, of_row, step.settings)


def test_a_reward_for_a_turn_that_a_sample_has_not_stops(config, dialogue, rewards):
    wrong = {**rewards, "alone": {**rewards["alone"], "plain": 0.0}}
    with pytest.raises(ConfigError, match=r"'plain' is 0 for sample 3, and belongs to turn 2, .* 1 turns; return NaN"):
        step_of(config, dialogue, wrong)


def test_the_example_passes_the_checks_of_a_start(config, tmp_path):
    write_data(tmp_path)
    config.data.train_files = str(tmp_path / "train.parquet")
    assert check_config(config).names == ("call", "plain", "correct")
