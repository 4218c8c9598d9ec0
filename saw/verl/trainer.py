"""SAW's trainers: verl's own trainers, with a mixin that handles the rewards of each objective.

``saw`` is verl's synchronous trainer; docs/async.md describes the asynchronous ones.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from saw.faults import TrainingEnded
from saw.method.advantage import objective_advantages
from saw.method.objective import Objective
from saw.method.registry import get_method
from saw.method.weighting import clip_norms
from saw.records import metrics_file, run_info, validation_samples
from saw.rewards import JUDGE
from saw.verl import step_metrics as objective_metrics
from saw.verl import version
from saw.verl.agent_loops import AgentLoopDied, Watch, died
from saw.verl.config import ConfigError
from saw.verl.config_checks import check_config, check_group_size
from saw.verl.estimator import StepRewards, rewards_of_step
from saw.verl.mini_batches import rewards_of, scalars_of, together
from saw.verl.names import FAILED, MODES, NAME, ROLLOUTS, SCALARS
from saw.verl.patches import vllm_log_level  # noqa: F401  logs: before verl imports vLLM
from saw.verl.replay_buffer import BUFFERS, AllLost, MultiRewardReplayBuffer
from saw.verl.reward_ranges import RewardRanges, exact_minima
from saw.verl.reward_values import plain
from saw.verl.transfer_queue import (
    check_range,
    checked_objective_matrix,
    checked_turns,
    lost_samples,
    of_all_rows,
    prompt_of,
    reward_infos,
    reward_of,
    scored_rows,
)
from saw.verl.weight_state import State

logger = logging.getLogger(__name__)


class TooManyMissing(TrainingEnded):
    """More of a step's rewards are missing than ``saw.max_missing`` allows."""


class BadReward(TrainingEnded):
    """A reward from which no advantage can be computed: infinite, below its minimum, not a number, or not returned."""


class MultiRewardTrainer(PPOTrainer):
    """Reads each objective's rewards from TransferQueue, passes them to the estimator, and logs them.

    A mixin, to the left of one of verl's trainers.

    Attributes:
        mode (str): verl's name for that trainer.
    """

    mode: str

    def __init__(self, config: DictConfig):
        settings = check_config(config)
        if settings is None:
            raise ConfigError(
                f"trainer.v1.trainer_mode is {config.trainer.v1.trainer_mode!r}; expected one of {', '.join(MODES)}"
            )
        self.settings = settings
        self._ranges = RewardRanges.of(config, settings)
        self._reported: set[str] = set()
        self._dataloader_before: dict | None = None
        self._rollouts: dict[str, int] = {}  # prompt in flight -> samples requested, if that varies
        self._mini_batches: list[StepRewards] = []  # of this step
        self._val_texts: tuple[list[str], list[str]] = ([], [])
        self.state = State()
        for objective in settings.objectives:
            if objective.minimum == "running":
                logger.warning(
                    "saw.objectives.%s.minimum is the lowest reward seen so far: its CV is not comparable between "
                    "steps while that falls, and never between runs",
                    objective.name,
                )
        # verl uses the name to tell whether a trainer is synchronous, and to find its section of trainer.v1
        OmegaConf.update(config, "trainer.v1.trainer_mode", self.mode)
        super().__init__(config)

    def _build_replay_buffer(self) -> ReplayBuffer:
        stock = super()._build_replay_buffer()
        if type(stock) not in BUFFERS:
            return stock  # the user's own sampler, trainer.v1.sampler.custom_sampler
        return BUFFERS[type(stock)].from_stock(stock, self.settings.names, self.settings.poll_interval)

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        if self.settings.needs_gradients:
            from saw.verl.gradients import GradientWorker  # loads verl's engines, which only these methods need here

            for role in (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef):
                if role in self.role_worker_mapping:
                    self.role_worker_mapping[role] = ray.remote(GradientWorker)

    def on_init_end(self):
        """Write ``run.json`` beside the metrics."""
        super().on_init_end()
        self._ranges.over(range(1, self.total_training_steps + 1))  # raises for a schedule that goes wrong later
        self._delete_earlier_metrics()
        ranges = dict(zip(self.settings.names, self._ranges.at(1), strict=True))
        config = self.config.copy()
        config.trainer.v1.trainer_mode = {mode: name for name, mode in MODES.items()}[self.mode]  # as set by the user
        run_info.write(config, ranges, self.total_training_steps)

    def _delete_earlier_metrics(self) -> None:
        """Delete the metrics of a training that this one replaces; only now, when the models are loaded."""
        trainer, metrics = self.config.trainer, os.environ.get(metrics_file.LOCATION)
        if trainer.resume_mode == "disable" and "file" in trainer.logger and metrics:
            metrics_file.begin(Path(metrics), resume=False)

    def fit(self, agent_loop_manager: AgentLoopManager):
        """Train, and watch the agent loop workers; a custom manager may have others."""
        if isinstance(self.replay_buffer, MultiRewardReplayBuffer):
            self.replay_buffer.watch = Watch(getattr(agent_loop_manager, "agent_loop_workers", ()))
        super().fit(agent_loop_manager)

    def on_step_begin(self):
        """Keep the data loader's state, for a checkpoint of the previous step."""
        super().on_step_begin()
        if self.mode != "sync":
            self._forget_prompts_that_are_gone()
            return
        self._rollouts = {}
        if self.train_dataloader_it is not None:
            self._dataloader_before = self.train_dataloader.state_dict()

    def _forget_prompts_that_are_gone(self) -> None:
        """Forget prompts that were trained on, or dropped by the replay buffer."""
        if self._rollouts:
            queued = (tq.kv_list("train") or {}).get("train", {})
            self._rollouts = {prompt: number for prompt, number in self._rollouts.items() if prompt in queued}

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """Do one step.

        Raises:
            TooManyMissing: if too many or all rewards are missing. A synchronous training then has a checkpoint of the
                previous step, see :meth:`_save_step_before`.
            BadReward: likewise, for a reward that can't be used.
            AgentLoopDied: likewise, if a process that generates samples has died.
        """
        self._mini_batches = []
        try:
            batch = super().step(metrics, timing_raw)
        except (AllLost, AgentLoopDied) as error:
            try:
                self.on_sample_end()  # makes room, as after any other sampling
            except ray.exceptions.RayError:
                logger.exception("the rollout could not be put to sleep")  # it may have died itself
            try:
                kept = self._save_step_before()
            except ray.exceptions.RayError:
                logger.exception("no checkpoint of the previous step could be saved")
                kept = "The same command resumes from the last checkpoint."
            kind = TooManyMissing if isinstance(error, AllLost) else AgentLoopDied
            raise kind(f"step {self.global_steps}: {error}. {kept}") from error
        # overwrites verl's, which merges the metrics of mini-batches by parts of their names
        metrics.update(objective_metrics.step_metrics(self._mini_batches, self.settings.names))
        used = together(self._mini_batches)
        self.state.weights = used.weights.tolist()
        self.state.memory = {name: values.tolist() for name, values in used.memory.items()}
        return batch

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        try:
            submitted = super()._submit_batch_to_rollout(batch)
        except ray.exceptions.RayActorError as error:
            raise AgentLoopDied(died(error)) from error
        # looked up afterwards, because a custom agent loop manager may have added it
        if ROLLOUTS in batch:
            self._rollouts |= dict(zip(batch["uid"], map(int, batch[ROLLOUTS]), strict=True))
        return submitted

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        # Rewards are available by now: check them before the expensive part of the step.
        try:
            self._step = rewards = self._rewards(batch)
            for step, rows in _by_step(rewards):
                check_range(rows, self.settings.names, [low for low, _ in self._ranges.at(step)])
        except ConfigError as error:
            raise BadReward(f"step {self.global_steps}: {error}. {self._save_step_before()}") from error
        self._stop_if_too_many_are_missing(rewards)
        if self.settings.needs_gradients:
            return self._compute_old_log_prob_and_gradients(batch, metrics)
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_old_log_prob_and_gradients(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        from saw.verl.gradients import ADVANTAGES, LAYERS, REDUCTION

        step = self._step
        groups = [prompt_of(batch.keys[row]) for row in step.scored.tolist()]
        advantages = objective_advantages(
            step.rewards[step.scored], groups, objectives=step.objectives, options=self.settings.options
        )
        fields = TensorDict({ADVANTAGES: of_all_rows(advantages, step.scored_of_row).float()}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        options = self.settings.options.gradient
        wanted = {LAYERS: options.layers or (), REDUCTION: options.reduction}
        batch.extra_info.update(wanted)
        done = super()._compute_old_log_prob(batch, metrics)
        for meta in (batch, done):
            for name in wanted:
                meta.extra_info.pop(name, None)
        found = self.actor_rollout_wg.objective_gradients()[0]
        compared = clip_norms(found.gram, self.settings.gradient_clip)
        step.gram = self.state.accumulate(compared, options.accumulate, step.step)
        metrics.update(objective_metrics.gradient_metrics(found, compared, self.settings.names))
        return done

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        rewards = self._step
        self.state.track_minima(rewards.rewards[rewards.scored], self.settings)
        rewards.objectives = self._objectives(rewards.submitted)
        with rewards_of_step(rewards) as step:
            batch = super()._compute_advantage(batch, metrics)
        if step.advantage is None:
            raise RuntimeError("verl computed advantages without the estimator 'saw'; is algorithm.adv_estimator set?")
        for submitted, rows in _by_step(step):
            self._report_above_maximum(rows, [high for _, high in self._ranges.at(submitted)])
        self._mini_batches.append(step)
        return batch

    def _stop_if_too_many_are_missing(self, step: StepRewards) -> None:
        missing = step.missing_shares()
        if step.lost:
            logger.warning(
                "step %d: %d of %d samples were lost; the log of the rollout and reward workers shows why",
                *(self.global_steps, step.lost, step.lost + len(step.scored)),
            )
        worst = max(range(len(missing)), key=missing.__getitem__)
        if missing[worst] <= self.settings.max_missing and min(missing) < 1.0:
            return
        kept = self._save_step_before()
        lost = f" ({step.lost} samples were lost)" if step.lost else ""
        raise TooManyMissing(
            f"step {self.global_steps}: {missing[worst]:.1%} of the samples have no reward "
            f"{self.settings.names[worst]!r}{lost}, and saw.max_missing is {self.settings.max_missing:g}. {kept} "
            f"The reasons: {self._faults_file() or 'the log of the reward workers'}"
        )

    def _save_step_before(self) -> str:
        """Save a checkpoint of the previous step, and return a message on how to resume; resuming repeats this step.

        An asynchronous training saves none: it has already taken prompts of this step from the queue and, with
        mini-batches, changed the weights. Its last checkpoint is consistent, because it includes the queue.
        """
        step = self.global_steps - 1
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{step}"
        if step == 0:
            return "This was the first step, so there is no earlier checkpoint."
        if self.mode != "sync":
            last = find_latest_ckpt_path(str(Path(self.config.trainer.default_local_dir).absolute()))
            return f"The same command resumes from {last or 'the start: there is no checkpoint'}."
        if not folder.exists() and self._dataloader_before is not None:
            self.global_steps = step
            try:
                self._save_checkpoint()
            finally:
                self.global_steps = step + 1
            torch.save(self._dataloader_before, folder / "data.pt")  # this step's prompts were already drawn
        return f"The same command resumes from {folder}."

    def _faults_file(self) -> str | None:
        return OmegaConf.select(self.config, f"{JUDGE}.faults", default=None)

    def _save_checkpoint(self):
        if self.mode != "sync":
            self.state.rollouts = self._rollouts
        self.state.objectives = list(self.settings.names)
        # before verl's part, which ends by marking the checkpoint as complete
        self.state.write(Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}")
        super()._save_checkpoint()

    def _load_checkpoint(self):
        super()._load_checkpoint()
        if self.global_steps > 0:
            trainer = self.config.trainer
            latest = f"{trainer.default_local_dir}/global_step_{self.global_steps}"
            self.state = State.read(Path(trainer.resume_from_path if trainer.resume_mode == "resume_path" else latest))
            self._rollouts = dict(self.state.rollouts)
            if self.state.objectives not in (None, list(self.settings.names)):
                raise ConfigError(
                    f"saw.objectives are {', '.join(self.settings.names)}, but those of the checkpoint "
                    f"{', '.join(self.state.objectives or ())}: resume with the same, in the same order"
                )
            remembers = get_method(self.settings.method).weighting.remembers
            if self.state.memory and set(self.state.memory) != remembers:
                raise ConfigError(
                    f"saw.method is {self.settings.method!r}, and the checkpoint has the memory of another method "
                    f"({', '.join(self.state.memory)}): resume with that method"
                )

    def _rewards(self, batch: KVBatchMeta) -> StepRewards:
        fields = ["extra_fields", "rm_scores", *(["response_mask"] if self.settings.names_turns else [])]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        scores = data["rm_scores"].to_padded_tensor(0.0).sum(dim=-1)
        if not scores.isfinite().all():
            raise ConfigError(
                f"the scalar score of {int((~scores.isfinite()).sum())} samples is not finite; "
                f"set reward.reward_manager.name={NAME}, which allows for missing rewards"
            )
        scored, of_row = scored_rows(batch.keys, batch.tags)
        infos = reward_infos(data)
        scored_infos = [infos[row] for row in scored.tolist()]
        prompts = [prompt_of(batch.keys[row]) for row in scored.tolist()]
        if not self._rollouts and len(set(prompts)) == len(prompts):
            check_group_size(self.config, self.settings)
        rewards = checked_objective_matrix(infos, self.settings)
        turns = None
        if self.settings.names_turns:
            turns = checked_turns(data["response_mask"], rewards, scored, of_row, self.settings)
        lost = lost_samples(prompts, self._expected_samples(prompts))
        # a prompt's rewards follow the schedule of the step at which it was submitted; the tags have it
        submitted = [batch.tags[row].get("global_steps", self.global_steps) for row in scored.tolist()]
        minima = {step: [low for low, _ in self._ranges.at(step)] for step in set(submitted)}
        rewards[scored] = exact_minima(rewards[scored], rewards.new_tensor([minima[step] for step in submitted]))
        return StepRewards(
            settings=self.settings,
            objectives=self._objectives(submitted),
            step=self.global_steps,
            previous_weights=self.state.weights,
            memory=self.state.memory,
            rewards=rewards,
            scored=scored,
            scored_of_row=of_row,
            lost=lost,
            prompts=prompts,
            submitted=submitted,
            infos=scored_infos,
            scalars=scores[scored],
            turns=turns,
            scores=scores if self.config.algorithm.use_kl_in_reward and self.settings.feels_kl_in_reward else None,
        )

    def _objectives(self, submitted: Sequence[int]) -> list[Objective]:
        """The objectives with their ranges at the steps at which prompts were submitted, running minima included."""
        return [
            Objective(
                objective.name,
                minimum=low if math.isfinite(low) else self.state.minima.get(objective.name),
                maximum=high if math.isfinite(low) and math.isfinite(high) else None,  # a running minimum may pass it
                priority=objective.priority,
                requires=objective.requires or None,
                otherwise=objective.otherwise,
                turn=objective.turn,
            )
            for objective, (low, high) in zip(self.settings.objectives, self._ranges.over(submitted), strict=True)
        ]

    def _expected_samples(self, prompts: Sequence[str]) -> dict[str, int]:
        """How many samples each prompt of the batch should have, including prompts that left no row."""
        rollouts = self.config.actor_rollout_ref.rollout.n
        selected = self.replay_buffer.take_selected() if hasattr(self.replay_buffer, "take_selected") else []
        expected = {prompt: self._rollouts.get(prompt, rollouts) for prompt in (*prompts, *selected)}
        # a custom sampler does not report which prompts it selected
        gone = self.config.data.train_batch_size // self.parameter_sync_step - len(expected)
        return expected | {f"gone {number}": rollouts for number in range(gone)}

    def _report_above_maximum(self, rewards: Tensor, maxima: Sequence[float]) -> None:
        largest = rewards.nan_to_num(nan=-math.inf).amax(dim=0).tolist()
        for name, value, maximum in zip(self.settings.names, largest, maxima, strict=True):
            if value > maximum and name not in self._reported:
                self._reported.add(name)
                logger.warning(
                    "the reward of %r is %g, above its stated maximum %g (reported once)", name, value, maximum
                )

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int):
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        rewards, scalars = rewards_of(self._mini_batches), scalars_of(self._mini_batches)
        metrics.update(objective_metrics.score_metrics(rewards, scalars))

    def _maybe_log_val_generations(self, inputs, outputs, scores):
        super()._maybe_log_val_generations(inputs, outputs, scores)
        self._val_texts = (inputs, outputs)  # their rewards are known in _val_metrics_update

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ) -> dict[str, float]:
        infos = {key: [plain(value) for value in values] for key, values in reward_extra_infos_dict.items()}
        for name in self.settings.names:
            if name not in infos:
                raise ConfigError(
                    f"the reward function returned no {name!r} in validation; it returned {sorted(infos)}"
                )
            infos[name] = [reward_of({name: value}, name) for value in infos[name]]
        # verl skips None and averages NaN: a missing reward must be None by the time it gets there.
        infos = {
            key: [None if isinstance(value, float) and math.isnan(value) else value for value in values]
            for key, values in infos.items()
        }
        failed = sum(value == 1.0 for value in infos.pop(FAILED, []))
        lost: float = math.nan if expected_acc_counts is None else sum(expected_acc_counts.values()) - len(sample_uids)
        if failed or lost > 0:
            logger.warning("validation: the reward function failed for %d samples, and %d were lost", failed, lost)
        for row in range(len(sample_uids)):
            if all(infos[name][row] is None for name in self.settings.names):
                for scalar in SCALARS & infos.keys():  # verl has 0 there, which is not a reward
                    infos[scalar][row] = None
        validation_samples.log(self.config.trainer, self.global_steps, *self._val_texts, infos, self.settings.names)
        if version.VALIDATION_COUNTS_SAMPLES:
            more = {"expected_acc_counts": expected_acc_counts}
        else:  # it leaves neither None nor NaN out of its means, so these are NaN where a reward is missing
            infos = {key: [math.nan if value is None else value for value in values] for key, values in infos.items()}
            more = {}
        metrics = super()._val_metrics_update(data_sources, sample_uids, infos, sample_turns, **more)
        counts = objective_metrics.sample_counts(failed, lost, prefix="saw-val")
        return metrics | objective_metrics.validation_metrics(infos, self.settings.names) | counts


def _by_step(step: StepRewards) -> Iterator[tuple[int, Tensor]]:
    """The rewards of the samples whose prompts were submitted at each step, shape ``(n, K)``."""
    rewards, submitted = step.rewards[step.scored], torch.tensor(list(step.submitted))
    for number in sorted(set(step.submitted)):
        yield number, rewards[submitted == number]


class SAWTrainer(MultiRewardTrainer, PPOTrainerSync):
    """``saw``: rollout and training in turn, on the same GPUs."""

    mode = "sync"


class SAWColocateAsyncTrainer(MultiRewardTrainer, PPOTrainerColocateAsync):
    """``saw_colocate_async``: on the same GPUs; a rollout that a step interrupts continues after it."""

    mode = "colocate_async"


class SAWSeparateAsyncTrainer(MultiRewardTrainer, PPOTrainerSeparateAsync):
    """``saw_separate_async``: rollout on separate GPUs, beside a training with several mini-batches per step."""

    mode = "separate_async"
