"""verl's replay buffers, with a group filter that considers every objective."""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from saw.verl.agent_loops import Watch
from saw.verl.transfer_queue import objective_matrix, prompt_of


class AllLost(RuntimeError):
    """All samples of a step were lost."""


class MultiRewardReplayBuffer(ReplayBuffer):
    """Keeps a group while any of its objectives has spread, or is missing for all of its samples.

    verl's ``algorithm.filter_groups`` drops a group whose scalar reward is constant. Two rewards that trade off can
    have a constant sum, yet that trade-off is what the weighted methods learn from. And if a reward is missing for
    every sample, its spread is unknown: if such groups were dropped, they would be resampled forever, and their missing
    rewards would not be counted.
    """

    names: tuple[str, ...]
    #: The prompts of the last batch, including those that left no row; taken by :meth:`take_selected`.
    selected: list[str]
    #: Checks that the agent loop workers are alive while waiting for samples.
    watch: Watch | None = None

    @classmethod
    def from_stock(cls, stock: ReplayBuffer, names: tuple[str, ...], poll_interval: float) -> MultiRewardReplayBuffer:
        """Take over the state of the buffer that verl built from its configuration."""
        buffer = cls.__new__(cls)
        buffer.__dict__.update(stock.__dict__)
        buffer.names = names
        buffer.poll_interval = poll_interval
        buffer.selected = []
        return buffer

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if self.watch is not None:
            self.watch.look()
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def take_selected(self) -> list[str]:
        """The prompts of the last batch; empty if they were already taken, or came from elsewhere."""
        selected, self.selected = self.selected, []
        return selected

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int):
        found = super()._select_prompt_uids(partition_id, sampleable_keys, batch_size)
        if partition_id == "train":
            self.selected, rows, _ = found
            prompts = set(self.selected)
            if not any(prompt_of(key) in prompts for key in rows):
                raise AllLost(f"all samples of {len(prompts)} prompts were lost: no rollout ended with a reward")
        return found

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        filtered, counts = super()._dapo_filtered_keys(partition_id)
        if not filtered:
            return filtered, counts
        verdicts = self._dapo_classification_cache[partition_id]
        for uid in self._with_spread(partition_id, filtered):
            verdicts[uid] = None  # verl's mark for a group to keep
        dropped = {uid: verdicts[uid] for uid in filtered if verdicts[uid] is not None}
        return set(dropped), Counter(dropped.values())

    def _with_spread(self, partition_id: str, uids: set[str]) -> set[str]:
        keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in uids]
        data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["extra_fields"])
        rows = defaultdict(list)
        for key, values in zip(keys, objective_matrix(data, self.names), strict=True):
            rows[key.split("_")[0]].append(values)
        groups = {uid: torch.stack(values) for uid, values in rows.items()}
        return {uid for uid, rewards in groups.items() if has_spread(rewards) or is_unknown(rewards)}


class MultiRewardReplayBufferAsync(MultiRewardReplayBuffer, ReplayBufferAsync):
    """verl's asynchronous buffer with the same filter; a failed group counts as it does in the synchronous one.

    verl's own drops a group that lost a sample, and draws another. Here its other samples are trained on, and the lost
    ones are counted: otherwise they would go unnoticed, and a training in which every rollout fails would never end.
    """

    def _terminal_eviction_reasons(
        self, global_steps: int, partition_id: str
    ) -> tuple[set[str], set[str], set[str], Counter]:
        stale, filtered, failed, counts = super()._terminal_eviction_reasons(global_steps, partition_id)
        return stale | self._too_old(failed, global_steps, partition_id), filtered, set(), counts

    def _too_old(self, uids: set[str], global_steps: int, partition_id: str) -> set[str]:
        """The groups that verl would have dropped for their age if they had not failed."""
        if self.max_off_policy_threshold is None or self.max_off_policy_strategy != "drop":
            return set()
        submitted = self.prompt_global_steps[partition_id]
        return {uid for uid in uids if global_steps - submitted[uid] + 1 > self.max_off_policy_threshold}


#: verl's buffer -> the one that replaces it.
BUFFERS: dict[type[ReplayBuffer], type[MultiRewardReplayBuffer]] = {
    ReplayBuffer: MultiRewardReplayBuffer,
    ReplayBufferAsync: MultiRewardReplayBufferAsync,
}


def has_spread(rewards: torch.Tensor) -> bool:
    """Whether any objective of a group, ``(n, K)`` with NaN for missing, has two different values."""
    low = rewards.nan_to_num(nan=torch.inf).amin(dim=0)
    high = rewards.nan_to_num(nan=-torch.inf).amax(dim=0)
    return bool((high > low).any())


def is_unknown(rewards: torch.Tensor) -> bool:
    """Whether an objective of a group, ``(n, K)`` with NaN for missing, has no value at all."""
    return bool(rewards.isnan().all(dim=0).any())
