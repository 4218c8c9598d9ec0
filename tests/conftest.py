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


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model with random weights."""
    from recipes.quickstart.toy_model import make_toy_model

    return make_toy_model(tmp_path_factory.mktemp("toy") / "model", steps=0)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small toy data set: training and test rows."""
    from data_prep.toy_toolrl import write_splits

    return write_splits(tmp_path_factory.mktemp("data"), train_rows=32, test_rows=8)
