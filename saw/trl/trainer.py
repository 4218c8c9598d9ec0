"""The trainer: TRL's ``GRPOTrainer``, with another computation of the advantages."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from saw.method.advantage import Advantage, compute_advantage
from saw.method.metrics import training_metrics
from saw.method.objective import Objective
from saw.method.options import Options
from saw.trl.run_log import RunLog
from saw.trl.settings import Settings

#: The file in a checkpoint's folder with the state of the weights.
STATE = "saw_state.json"

logger = logging.getLogger(__name__)


class SawGRPOTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer``, with the advantages of any method in :data:`saw.METHODS`.

    The reward functions are the objectives. TRL generates and scores as always; its advantages are then replaced by
    those of :func:`saw.compute_advantage`, computed from the rewards of all ranks. A reward function that returns None
    for a sample leaves that reward missing; it never becomes 0.

    Statistics and weights are of one *generation batch*: the ``generation_batch_size`` samples that TRL generates at
    once, on all ranks, for ``steps_per_generation`` forward passes. By default that is one optimiser step. If it is
    used for several, they share its weights; if an optimiser step has several generation batches, each has its own.

    Args:
        *args: as for ``GRPOTrainer``.
        method (str): a name in :data:`saw.METHODS`.
        objectives (Sequence[Objective] | None): one per reward function, matched by name. Without them, minima are
            taken to be 0 in the methods that need them.
        options (Options | Mapping | None): see :class:`saw.Options`; ``{"profile": "trl"}`` has TRL's constants.
        **kwargs: as for ``GRPOTrainer``. ``args.reward_weights`` are the priorities of the objectives.

    Raises:
        ValueError: for an argument that cannot work, see :meth:`saw.trl.settings.Settings.of`, and for TRL's own
            ``multi_objective_aggregation`` or ``scale_rewards``, which the method replaces.
    """

    def __init__(
        self,
        *args: Any,
        method: str,
        objectives: Sequence[Objective] | None = None,
        options: Options | Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _refuse_trl_s_own(self.multi_objective_aggregation, self.scale_rewards, method)
        names, weights = self.reward_func_names, self.args.reward_weights
        if weights is not None:
            weights = [*weights, *[1.0] * (len(names) - len(weights))]  # TRL adds the rewards of environments
        self.saw_settings = Settings.of(method, objectives, options, functions=names, reward_weights=weights)
        # TRL's metric `reward` is the sum of the rewards with these
        self.reward_weights = torch.tensor([objective.priority for objective in self.saw_settings.objectives])
        self._saw_memory: dict[str, Any] = {}  # arguments of compute_advantage, from the last generation batch
        self._saw_rewards: Tensor | None = None
        self.add_callback(RunLog(self.saw_settings, getattr(self.model.config, "_name_or_path", "")))

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's, of shape ``(N, K)`` over all ranks, NaN where a function returned None; kept for the advantages."""
        self._saw_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._saw_rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, with the advantages of this rank's samples replaced."""
        output = super()._generate_and_score_completions(inputs)
        rewards, lengths = self._saw_rewards, self._saw_lengths(output)
        assert rewards is not None
        training = self.model.training
        if not training and rewards.isnan().all():
            return output  # an evaluation batch without any reward has nothing to report; TRL's advantages are 0
        result = self._saw_advantage(rewards.cpu(), lengths, training)
        here = len(output["advantages"])
        first = here * self.accelerator.process_index
        output["advantages"] = result.samples[first : first + here].to(output["advantages"])
        logged = self._logs["advantages"]
        for _ in range(min(len(rewards), len(logged))):  # TRL's own, of the same samples
            logged.pop()
        logged.extend(result.samples.tolist())
        for name, value in training_metrics(result, self.saw_settings.names).items():
            self._metrics["train" if training else "eval"][name].append(value)
        return output

    def _saw_lengths(self, output: Mapping[str, Tensor]) -> Tensor:
        """The number of tokens that are trained on, of each sample of all ranks: shape ``(N,)``, on the CPU."""
        mask = output["completion_mask"]
        if "tool_mask" in output:
            mask = mask * output["tool_mask"]
        return self.accelerator.gather(mask.sum(dim=1)).cpu()

    def _saw_advantage(self, rewards: Tensor, lengths: Tensor, training: bool) -> Advantage:
        """The advantages, computed on the CPU: they are small and in float64, which not every accelerator has."""
        settings = self.saw_settings
        group_size = self.num_generations if training else self.num_generations_eval
        result = compute_advantage(
            rewards,
            torch.arange(len(rewards)) // group_size,
            lengths,
            method=settings.method,
            objectives=settings.objectives,
            options=settings.options,
            step=self.state.global_step + 1,  # the step that is being trained
            **self._saw_memory,
        )
        if training:
            self._saw_memory = {
                "previous_weights": result.weights.tolist(),
                "memory": {name: values.tolist() for name, values in result.memory.items()},
            }
        return result

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL's, with the state of the weights."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            state = {"method": self.saw_settings.method, "objectives": self.saw_settings.names, **self._saw_memory}
            (folder / STATE).write_text(json.dumps(state) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """TRL's, with the state of the weights.

        Raises:
            ValueError: if the checkpoint is of another method or of other objectives.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if not path.exists():
            logger.warning("%s is not there: the checkpoint is not SawGRPOTrainer's; the weights start over", path)
            return
        state = json.loads(path.read_text())
        for what, own in (("objectives", self.saw_settings.names), ("method", self.saw_settings.method)):
            if (saved := state.pop(what)) != own:
                raise ValueError(f"{what} of the checkpoint is {saved!r} ({path}), and of this training {own!r}")
        self._saw_memory = state


def _refuse_trl_s_own(aggregation: str, scale_rewards: str, method: str) -> None:
    for argument, value, default in (
        ("multi_objective_aggregation", aggregation, "sum_then_normalize"),
        ("scale_rewards", scale_rewards, "group"),
    ):
        if value != default:
            raise ValueError(
                f"args.{argument} is {value!r}, which the method replaces: {method} normalises in its own way; "
                f"leave it at its default, {default!r}"
            )
