"""What every kind of test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Golden values and real rows; they are no part of the repository, and the tests that need them skip without.
SHARED = Path(os.environ.get("SAW_SHARED", ROOT.parent / "shared"))

# The contract and unit tests import verl as a CPU machine does; the pipeline sets this by itself.
os.environ.setdefault("VERL_PLATFORM", "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the folder that it is in."""
    for item in items:
        kind = item.path.relative_to(ROOT / "tests").parts[0]
        item.add_marker(kind)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden values and real rows."""
    if not SHARED.is_dir():
        pytest.skip(f"no golden values: {SHARED} is absent (set SAW_SHARED)")
    return SHARED
