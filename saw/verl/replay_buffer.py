"""verl's synchronous replay buffer, with a group filter that looks at every objective."""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from saw.verl.rows import objective_matrix


class MultiRewardReplayBuffer(ReplayBuffer):
    """Keeps a group while any of its objectives has spread.

    verl's ``algorithm.filter_groups`` drops a group whose scalar reward is constant. Two rewards that trade off
    against each other have a constant sum, and just that is what the weighted methods learn from.
    """

    names: tuple[str, ...]

    @classmethod
    def from_stock(cls, stock: ReplayBuffer, names: tuple[str, ...], poll_interval: float) -> MultiRewardReplayBuffer:
        """Take over the state of the buffer that verl built from its configuration."""
        buffer = cls.__new__(cls)
        buffer.__dict__.update(stock.__dict__)
        buffer.names = names
        buffer.poll_interval = poll_interval
        return buffer

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        filtered, counts = super()._dapo_filtered_keys(partition_id)
        if not filtered:
            return filtered, counts
        verdicts = self._dapo_classification_cache[partition_id]
        for uid in self._with_spread(partition_id, filtered):
            verdicts[uid] = None  # verl's mark for a group that stays
        dropped = {uid: verdicts[uid] for uid in filtered if verdicts[uid] is not None}
        return set(dropped), Counter(dropped.values())

    def _with_spread(self, partition_id: str, uids: set[str]) -> set[str]:
        keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in uids]
        data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["extra_fields"])
        rows = defaultdict(list)
        for key, values in zip(keys, objective_matrix(data, self.names), strict=True):
            rows[key.split("_")[0]].append(values)
        return {uid for uid, values in rows.items() if has_spread(torch.stack(values))}


def has_spread(rewards: torch.Tensor) -> bool:
    """Whether any objective of a group, ``(n, K)`` with NaN for missing, has two different present values."""
    low = rewards.nan_to_num(nan=torch.inf).amin(dim=0)
    high = rewards.nan_to_num(nan=-torch.inf).amax(dim=0)
    return bool((high > low).any())
