"""What the end-to-end tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def warm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model that has seen enough answers to be right and wrong now and then."""
    from recipes.quickstart.toy_model import make_toy_model

    return make_toy_model(tmp_path_factory.mktemp("warm") / "model", steps=60)
