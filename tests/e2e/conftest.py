"""What the trainings share."""

from collections.abc import Iterator

import pytest

from tests.conftest import ONE_THREAD


@pytest.fixture(autouse=True, scope="module")
def no_limit_of_threads() -> Iterator[None]:
    """A training has the environment that a user gives it, also if one of xdist's processes starts it."""
    with pytest.MonkeyPatch.context() as patch:
        if ONE_THREAD:
            patch.delenv("OMP_NUM_THREADS")
        yield
