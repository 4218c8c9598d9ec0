"""Reads TransferQueue rows: which ones are used, and the rewards of each objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from saw.method.objective import LARGEST
from saw.method.turns import check_turns, turns_of
from saw.verl.config import ConfigError, Settings, check_returned
from saw.verl.reward_values import reward_value


def reward_infos(data: TensorDict) -> list[Mapping[str, Any]]:
    """The dict that the reward function returned for each row.

    ``TensorDict["extra_fields"]`` gives a list or a stack, depending on the backend; popping it always gives an
    object with ``tolist`` (verl 0.9.1 does the same).
    """
    extra_fields = data.pop("extra_fields").tolist()
    return [fields.get("reward_extra_info", {}) for fields in extra_fields]


def objective_matrix(data: TensorDict, names: Sequence[str]) -> Tensor:
    """Rewards of all rows: shape ``(R, K)``, float64, NaN where a value is missing (NaN or None)."""
    return _matrix(reward_infos(data), names)


def _matrix(infos: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Tensor:
    return torch.tensor([[reward_of(info, name) for name in names] for info in infos], dtype=torch.float64)


def reward_of(info: Mapping[str, Any], name: str) -> float:
    """One reward from a reward function's dict, NaN if it is missing.

    Raises:
        ConfigError: if it is not a number.
    """
    try:
        return reward_value(info.get(name))
    except TypeError as error:
        raise ConfigError(f"the reward {name!r}: {error}") from None


def checked_objective_matrix(infos: Sequence[Mapping[str, Any]], settings: Settings) -> Tensor:
    """Like :func:`objective_matrix`, after a check that the reward function returned every objective.

    Raises:
        ConfigError: if a row lacks an objective (a missing *value* is NaN or None under the objective's name), or a
            reward is not a number.
    """
    for info in infos:
        check_returned(settings, info)
    return _matrix(infos, settings.names)


def checked_turns(masks: Tensor, rewards: Tensor, scored: Tensor, scored_of_row: Tensor, settings: Settings) -> Tensor:
    """The model's turn of each token, after a check that the rewards of turns have one.

    Taken from the masks as the agent loop made them: rollout correction may remove tokens from them later.

    Args:
        masks (Tensor): nested, R response masks.
        rewards (Tensor): shape ``(R, K)``, NaN where missing.
        scored (Tensor): the rows used, see :func:`scored_rows`.
        scored_of_row (Tensor): shape ``(R,)``, see :func:`scored_rows`.
        settings (Settings): with an objective that belongs to a turn.

    Returns:
        Tensor: shape ``(R, T)``, see :func:`saw.turns_of`.

    Raises:
        ConfigError: if a sample has several outputs, whose turns can't be numbered, or a reward belongs to a turn that
            its sample doesn't have.
    """
    if int((scored_of_row >= 0).sum()) > len(scored):
        named = ", ".join(repr(objective.name) for objective in settings.objectives if objective.turn is not None)
        raise ConfigError(
            f"the agent loop returned several outputs for a sample, and saw.objectives has {named} with a turn: turns "
            "are counted within one output; return one, or leave the turn out"
        )
    turns = turns_of(masks.to_padded_tensor(0))
    try:
        check_turns(rewards[scored], settings.objectives, turns[scored])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return turns


def check_range(rewards: Tensor, names: Sequence[str], minima: Sequence[float]) -> None:
    """Check that an advantage can be computed from every present reward, before the expensive parts of a step.

    Args:
        rewards (Tensor): shape ``(N, K)``, NaN where missing.
        names (Sequence[str]): K of them.
        minima (Sequence[float]): the lowest possible rewards; -inf if unknown.

    Raises:
        ConfigError: for a reward that is infinite, too large to be squared, or below its minimum.
    """
    for column, name, minimum in zip(rewards.unbind(dim=1), names, minima, strict=True):
        for bad, what in (
            (column.abs() > LARGEST, f"expected a finite number, at most {LARGEST:g} in size; NaN or None if missing"),
            (column < minimum, f"below its minimum {minimum:g}; see saw.objectives.{name}.minimum"),
        ):
            if bad.any():
                values = column[bad]
                raise ConfigError(f"the reward {name!r} of {len(values)} samples is {values[0].item():g}; {what}")


def prompt_of(key: str) -> str:
    """The prompt that a row answers: its group. Keys are ``{uid}_{session}_{output}``."""
    return key.rsplit("_", 2)[0]


def lost_samples(prompts: Sequence[str], expected: Mapping[str, int]) -> int:
    """How many requested samples never came back.

    A failed rollout, a dead reward worker and an agent that returns nothing leave no row.

    Args:
        prompts (Sequence[str]): the prompt of each sample that came back.
        expected (Mapping[str, int]): how many samples of each prompt there should be.
    """
    came = Counter(prompts)
    return sum(max(number - came[prompt], 0) for prompt, number in expected.items())


def of_all_rows(values: Tensor, scored_of_row: Tensor) -> Tensor:
    """Give each row its session's value, and padding 0.

    Args:
        values (Tensor): shape ``(S, ...)``, of the scored rows.
        scored_of_row (Tensor): shape ``(R,)``, see :func:`scored_rows`.

    Returns:
        Tensor: shape ``(R, ...)``.
    """
    rows = values[scored_of_row]
    rows[scored_of_row < 0] = 0.0
    return rows


def scored_rows(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Find the rows that take part in the statistics.

    Padding rows copy another sample's rewards. A session may have several outputs, and only the last one has the
    reward; keys are ``{uid}_{session}_{output}``.

    Args:
        keys: R keys.
        tags: R tags.

    Returns:
        tuple[Tensor, Tensor]: the indices of the rows used, and for each row its index among them, -1 for padding.
    """
    last: dict[str, tuple[int, int]] = {}
    sessions = [key.rpartition("_")[0] for key in keys]
    outputs = [int(key.rpartition("_")[2]) for key in keys]
    for row, (session, output, tag) in enumerate(zip(sessions, outputs, tags, strict=True)):
        if not tag.get("is_padding", False) and output >= last.get(session, (-1, -1))[0]:
            last[session] = (output, row)
    scored = sorted(row for _, row in last.values())
    place = {row: position for position, row in enumerate(scored)}
    of_row = [
        -1 if tag.get("is_padding", False) else place[last[session][1]]
        for session, tag in zip(sessions, tags, strict=True)
    ]
    return torch.tensor(scored, dtype=torch.int64), torch.tensor(of_row, dtype=torch.int64)
