"""Two steps of the study's training with given samples, by verl's own parts; started by ``tests/contract/ranks.py``.

python -m tests.contract.ranks RANKS lean_by_verl MODEL_FOLDER METHOD RESULTS_FOLDER

The configuration is the study's. verl's data set and sampler choose the rows, the reward manager scores the samples,
the estimator weights them, and verl's actor under FSDP2 computes log-probabilities and the update. Only the samples are
made here: answers, right or spoilt at random. Ray, TransferQueue and vLLM are not needed.
"""

import json
import random
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from tests.contract.worker import actor_batch

# isort: split
import numpy as np
import torch
from omegaconf import DictConfig
from torchdata.stateful_dataloader import StatefulDataLoader
from verl import DataProto
from verl.trainer.ppo.core_algos import agg_loss
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer import hf_tokenizer
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import response_from_nested, response_to_nested

from data_prep.toy_toolrl import write_splits
from recipes.quickstart.toy_model import spoil
from saw import Objective
from saw.rewards import toolrl
from saw.verl.config import Settings
from saw.verl.estimator import StepRewards, estimate, rewards_of_step
from saw.verl.reward_manager import MultiRewardManager
from saw.verl.step_metrics import step_metrics
from saw.verl.transfer_queue import checked_objective_matrix, scored_rows
from tests.configs import compose

STEPS = 2
#: So few that the second step takes rows of the second epoch, as step 33 of the study does.
ROWS = 24


def batches(config: DictConfig, rows: RLHFDataset) -> list[list[dict]]:
    """The rows of each step, as verl's synchronous trainer fetches them."""
    sampler, size = create_rl_sampler(config.data, rows), config.data.train_batch_size
    loader = StatefulDataLoader(rows, batch_size=size, sampler=sampler, drop_last=True, collate_fn=list)
    return list(islice((batch for _ in range(STEPS) for batch in loader), STEPS))


def score(manager: MultiRewardManager, sample: dict, step: int) -> dict[str, Any]:
    """A sample's rewards, by verl's reward manager."""
    row = sample["row"]
    columns = {"data_source": row["data_source"], "reward_model": row["reward_model"], "global_steps": step}
    columns["extra_info"] = dict(row["extra_info"])
    data = DataProto.from_dict(
        tensors={
            "responses": torch.tensor([sample["response"]]),
            "attention_mask": torch.ones(1, len(sample["prompt"] + sample["response"]), dtype=torch.int64),
        },
        non_tensors={name: np.array([value], dtype=object) for name, value in columns.items()},
    )
    return manager.loop.run_until_complete(manager.run_single(data))["reward_extra_info"]


def advantages(settings: Settings, infos: list[dict], mask: torch.Tensor, step: int) -> tuple[torch.Tensor, dict]:
    """Token advantages and metrics, as the plug-in's trainer has them computed."""
    groups = [f"prompt{row // 4}" for row in range(len(infos))]
    scored, of_row = scored_rows([f"{group}_{row % 4}_0" for row, group in enumerate(groups)], [{}] * len(infos))
    objectives = [Objective(name, *ends) for name, ends in toolrl.bounds(step=step).items()]
    matrix = checked_objective_matrix(infos, settings)
    with rewards_of_step(StepRewards(settings, objectives, step, None, matrix, scored, of_row, infos=infos)) as found:
        tokens, _ = estimate(torch.zeros(mask.shape), mask, index=np.array(groups, dtype=object))
    return tokens, step_metrics([found], settings.names)


def train_step(
    worker: ActorRolloutRefWorker, config: DictConfig, samples: list[dict], infos: list[dict], step: int
) -> dict[str, float]:
    """Log-probabilities, advantages and update, as in verl's trainer."""
    actor = config.actor_rollout_ref.actor
    data = actor_batch(samples)
    mask = data["response_mask"]
    tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False, temperature=1.0)
    output = worker.compute_log_prob(data.copy())
    padded = mask.to_padded_tensor(0)
    entropy = response_from_nested(output["entropy"], mask).to_padded_tensor(0.0)
    tokens, metrics = advantages(Settings.of(config), infos, padded, step)
    data["old_log_probs"] = response_from_nested(output["log_probs"], mask)
    data["advantages"] = response_to_nested(tokens, mask)
    tu.assign_non_tensor(
        data,
        calculate_entropy=False,
        compute_loss=True,
        global_batch_size=len(samples),
        mini_batch_size=len(samples),
        epochs=actor.ppo_epochs,
        seed=actor.data_loader_seed,
        dataloader_kwargs={"shuffle": actor.shuffle},
    )
    updated = tu.get(worker.update_actor(data), "metrics")
    return {
        **metrics,
        "actor/entropy": agg_loss(entropy, padded, actor.loss_agg_mode).item(),
        "actor/grad_norm": float(np.sum(updated["grad_norm"])),
        "actor/pg_loss": float(np.sum(updated["loss"])),
    }


def main() -> None:
    """Train, and write rows, samples, metrics and the last weights."""
    path, method, results = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    config = compose("experiment=study", f"saw.method={method}", f"actor_rollout_ref.model.path={path}")
    tokenizer = hf_tokenizer(path)
    train, _ = write_splits(results, train_rows=ROWS, test_rows=1)
    data = create_rl_dataset(str(train), config.data, tokenizer, None)
    manager = MultiRewardManager(config, tokenizer, get_custom_reward_fn(config))
    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    chance = random.Random(0)
    steps = []
    for step, rows in enumerate(batches(config, data), 1):
        samples = []
        for row in rows:
            prompt = tokenizer.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, return_dict=False)
            for _ in range(config.actor_rollout_ref.rollout.n):
                answer = spoil(row["reward_model"]["ground_truth"], chance, 0.5, 0.5) + tokenizer.eos_token
                samples.append({"row": row, "prompt": prompt, "response": tokenizer.encode(answer)})
        infos = [score(manager, sample, step) for sample in samples]
        metrics = train_step(worker, config, samples, infos, step)
        steps.append(
            {
                "prompts": [row["raw_prompt"] for row in rows],
                "responses": [sample["response"] for sample in samples],
                "metrics": metrics,
            }
        )
    (results / "steps.json").write_text(json.dumps(steps))
    weights, _ = worker.actor.engine.get_per_tensor_param()
    torch.save(dict(weights), results / "weights.pt")
