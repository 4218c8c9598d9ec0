"""The groups of a step's samples: those that answer the same prompt."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: What a caller gives: one id per sample.
Groups = Sequence[Hashable] | Iterable[Hashable] | Tensor


@dataclass(frozen=True)
class EvenGroups:
    """Groups of one size whose samples follow one another, as in most batches of a trainer.

    Sums and minima are over a view of shape ``(number, each, ...)``: faster than with an index, and on a GPU always in
    the same order.

    Attributes:
        number (int): G, the number of groups.
        each (int): samples per group.
    """

    number: int
    each: int

    def size(self, like: Tensor) -> Tensor:
        """Number of samples per group: shape ``(G,)``, of the dtype and on the device of ``like``."""
        return like.new_full((self.number,), self.each)

    def sum(self, values: Tensor) -> Tensor:
        """Sum per group: shape ``(N, ...)`` to ``(G, ...)``, same dtype."""
        return values.unflatten(0, (self.number, self.each)).sum(dim=1)

    def min(self, values: Tensor) -> Tensor:
        """Smallest value per group, of floating-point values: shape ``(N, ...)`` to ``(G, ...)``, same dtype."""
        return values.unflatten(0, (self.number, self.each)).amin(dim=1)

    def spread(self, values: Tensor) -> Tensor:
        """Give each sample the value of its group: shape ``(G, ...)`` to ``(N, ...)``."""
        return values.repeat_interleave(self.each, dim=0)


@dataclass(frozen=True)
class IndexedGroups:
    """Groups of any sizes and in any order.

    Attributes:
        number (int): G, the number of groups.
        of_sample (Tensor): shape ``(N,)``, int64 in ``[0, G)``, the group of each sample.
    """

    number: int
    of_sample: Tensor

    def size(self, like: Tensor) -> Tensor:
        """See :meth:`EvenGroups.size`."""
        return torch.bincount(self.of_sample, minlength=self.number).to(like)

    def sum(self, values: Tensor) -> Tensor:
        """See :meth:`EvenGroups.sum`."""
        return values.new_zeros(self.number, *values.shape[1:]).index_add_(0, self.of_sample, values)

    def min(self, values: Tensor) -> Tensor:
        """See :meth:`EvenGroups.min`."""
        index = self.of_sample.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
        smallest = values.new_full((self.number, *values.shape[1:]), torch.inf)
        return smallest.scatter_reduce_(0, index, values, "amin")

    def spread(self, values: Tensor) -> Tensor:
        """See :meth:`EvenGroups.spread`."""
        return values.index_select(0, self.of_sample)


Grouping = EvenGroups | IndexedGroups


def number_groups(groups: Groups, n: int, device: torch.device) -> Grouping:
    """Number the groups in the order of their first sample.

    Equal ids are one group: 1, 1.0, ``np.int64(1)`` and ``torch.tensor(1)`` are equal.

    Args:
        groups: n ids.
        n (int): number of samples.
        device (torch.device): of the index.

    Returns:
        Grouping: the groups, numbered.

    Raises:
        ValueError: for a wrong number of ids, an id that is NaN, or ids that mix numbers and text.
        TypeError: for an id that is not hashable, or ids without an order.
    """
    if isinstance(groups, Set | Mapping) or not isinstance(groups, Iterable):
        raise TypeError(f"groups is {groups!r}, a {type(groups).__name__}; expected a sequence, one id per sample")
    shape = getattr(groups, "shape", (n,))
    if len(shape) != 1:
        raise ValueError(f"groups has shape {tuple(shape)}; expected ({n},), one id per sample")
    if hasattr(groups, "tolist"):  # tensors and numpy arrays: their elements are hashable only as Python objects
        groups = groups.tolist()
    ids = list(groups)
    if len(ids) != n:
        raise ValueError(f"groups has {len(ids)} ids and rewards {n} rows; expected one id per sample")
    try:
        distinct = list(dict.fromkeys(ids))
        plain = set(map(type, distinct)) in ({str}, {int})
    except TypeError:
        plain = False
    if not plain:  # skipped otherwise, as a Python loop over the samples is slow
        ids = [_plain_id(value, f"groups[{position}]") for position, value in enumerate(ids)]
        _check_kinds(ids)
        distinct = list(dict.fromkeys(ids))
    number = len(distinct)
    each = n // number
    if number * each == n and all(ids[place::each] == distinct for place in range(each)):
        return EvenGroups(number, each)
    numbers = dict(zip(distinct, range(number), strict=True))
    index = np.fromiter(map(numbers.__getitem__, ids), dtype=np.int64, count=n)
    return IndexedGroups(number, torch.from_numpy(index).to(device))


def _plain_id(value: Any, where: str) -> Hashable:
    """The id itself, or the value of a tensor without dimensions, because tensors hash by identity."""
    if isinstance(value, tuple):
        return tuple(_plain_id(part, where) for part in value)
    is_array = isinstance(value, Tensor | np.ndarray)
    if is_array and value.ndim == 0:
        value, is_array = value.item(), False
    try:
        if is_array:
            raise TypeError(f"shape {tuple(value.shape)}")
        hash(value)
        is_itself = bool(value == value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{where} is {value!r}, a {type(value).__name__}, not hashable or not comparable ({error}); "
            "expected a number, a string or a tuple of them"
        ) from error
    if not is_itself:
        raise ValueError(f"{where} is {value!r}, which does not equal itself; expected an id that samples can share")
    return value


def _check_kinds(ids: list[Hashable]) -> None:
    """Refuse ``1`` beside ``"1"``: they are not equal, but were probably meant as the same prompt."""
    first: dict[type, int] = {}
    for position, value in enumerate(ids):
        for kind in (Number, str, bytes):
            if isinstance(value, kind):
                first.setdefault(kind, position)
    if len(first) > 1:
        i, j = list(first.values())[:2]
        raise ValueError(
            f"groups[{i}] is {ids[i]!r} and groups[{j}] is {ids[j]!r}, which are never equal; expected ids of one kind"
        )
