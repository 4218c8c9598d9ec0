"""The trainer ``saw``: verl's synchronous trainer, which knows the rewards of each objective."""

from __future__ import annotations

import logging

import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from saw.verl import metrics as objective_metrics
from saw.verl.estimator import StepRewards, rewards_of_step
from saw.verl.replay_buffer import MultiRewardReplayBuffer
from saw.verl.rows import checked_objective_matrix, scored_rows
from saw.verl.settings import NAME, ConfigError, check_config, ranges_at

logger = logging.getLogger(__name__)


@register_trainer(NAME)
class SAWTrainer(PPOTrainerSync):
    """Takes each objective's rewards out of TransferQueue, hands them to the estimator, and logs them."""

    def __init__(self, config: DictConfig):
        settings = check_config(config)
        if settings is None:
            raise ConfigError(f"trainer.v1.trainer_mode is {config.trainer.v1.trainer_mode!r}; expected {NAME!r}")
        self.settings = settings
        self._reported: set[str] = set()
        super().__init__(config)

    def _build_replay_buffer(self) -> ReplayBuffer:
        # verl takes every mode but "sync" for an asynchronous one, here and wherever it asks again.
        self.trainer_mode = "sync"
        stock = super()._build_replay_buffer()
        if type(stock) is not ReplayBuffer:
            return stock  # the user's own sampler, trainer.v1.sampler.custom_sampler
        return MultiRewardReplayBuffer.from_stock(stock, self.settings.names, self.settings.poll_interval)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        ranges = ranges_at(self.config, self.settings, self.global_steps)
        with rewards_of_step(self._rewards(batch, [low for low, _ in ranges])) as step:
            batch = super()._compute_advantage(batch, metrics)
        if step.advantage is None:
            raise RuntimeError("verl computed advantages without the estimator 'saw'; is algorithm.adv_estimator set?")
        self._report_above_maximum(step.advantage.statistics.max.tolist(), [high for _, high in ranges])
        metrics.update(objective_metrics.training_metrics(step.advantage, self.settings.names))
        return batch

    def _rewards(self, batch: KVBatchMeta, minima: list[float]) -> StepRewards:
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields", "rm_scores"]
        )
        scores = data["rm_scores"].to_padded_tensor(0.0).sum(dim=-1)
        if not scores.isfinite().all():
            raise ConfigError(
                f"the scalar score of {int((~scores.isfinite()).sum())} samples is not finite; "
                f"set reward.reward_manager.name={NAME}, which allows for missing rewards"
            )
        scored, of_row = scored_rows(batch.keys, batch.tags)
        return StepRewards(
            settings=self.settings,
            minima=minima,
            rewards=checked_objective_matrix(data, self.settings),
            scored=scored,
            scored_of_row=of_row,
            scores=scores if self.config.algorithm.use_kl_in_reward and self.settings.feels_kl_in_reward else None,
        )

    def _report_above_maximum(self, largest: list[float], maxima: list[float]) -> None:
        for name, value, maximum in zip(self.settings.names, largest, maxima, strict=True):
            if value > maximum and name not in self._reported:
                self._reported.add(name)
                logger.warning(
                    "the reward of %r is %g, above its stated maximum %g (reported once)", name, value, maximum
                )

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ) -> dict[str, float]:
        # verl skips None and averages NaN: a missing reward must be None by the time it gets there.
        infos = {
            key: [None if isinstance(value, float) and value != value else value for value in values]
            for key, values in reward_extra_infos_dict.items()
        }
        for name in self.settings.names:
            if name not in infos:
                raise ConfigError(
                    f"the reward function returned no {name!r} in validation; it returned {sorted(infos)}"
                )
        metrics = super()._val_metrics_update(
            data_sources, sample_uids, infos, sample_turns, expected_acc_counts=expected_acc_counts
        )
        return metrics | objective_metrics.validation_metrics(infos, self.settings.names)
