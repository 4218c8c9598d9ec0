"""Both kinds of groups against plain Python, and when each is used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saw.method.groups import EvenGroups, IndexedGroups, number_groups

CPU = torch.device("cpu")


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=24)
    | st.builds(
        lambda number, each: [i for i in range(number) for _ in range(each)], st.integers(1, 6), st.integers(1, 5)
    ),
    st.integers(0, 2**31),
)
def test_sums_minima_and_sizes_are_those_of_plain_python(ids, seed):
    values = torch.rand(len(ids), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    members = {each: [row for row, own in zip(values, ids, strict=True) if own == each] for each in dict.fromkeys(ids)}
    groups = number_groups(ids, len(ids), CPU)
    assert groups.number == len(members)
    expected = torch.stack([torch.stack(rows).sum(dim=0) for rows in members.values()])
    torch.testing.assert_close(groups.sum(values), expected)
    torch.testing.assert_close(groups.sum(values[:, 0]), expected[:, 0])
    lowest = torch.stack([torch.stack(rows).amin(dim=0) for rows in members.values()])
    assert torch.equal(groups.min(values), lowest)
    assert torch.equal(groups.min(values[:, 0]), lowest[:, 0])
    assert groups.size(values).tolist() == [len(rows) for rows in members.values()]
    assert groups.size(values).dtype == torch.float64
    order = list(members)
    assert torch.equal(groups.spread(lowest), torch.stack([lowest[order.index(own)] for own in ids]))


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["a", "a", "b", "b"], EvenGroups(2, 2)),
        ([7], EvenGroups(1, 1)),
        ([3, 1, 2], EvenGroups(3, 1)),
        ([1, 1.0, torch.tensor(2), 2], EvenGroups(2, 2)),
        (["a", "b", "a", "b"], IndexedGroups),  # one size, but mixed
        (["a", "a", "a", "b"], IndexedGroups),  # consecutive, but of two sizes
        (["a", "a", "b"], IndexedGroups),
        (["a", "b", "b", "a"], IndexedGroups),
    ],
)
def test_even_groups_are_recognised(ids, kind):
    found = number_groups(ids, len(ids), CPU)
    assert found == kind if isinstance(kind, EvenGroups) else isinstance(found, kind)
