"""Each part is loaded where it is used: importing a package must not drag in what a process has no use for."""

import json
import os
import subprocess
import sys

import pytest

import saw


def modules_after(code: str, **environment: str) -> set[str]:
    """The modules that a new interpreter has loaded after running some code."""
    command = [sys.executable, "-c", f"{code}; import sys, json; print(json.dumps(list(sys.modules)))"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env={**os.environ, **environment}
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_method_needs_neither_verl_nor_ray():
    loaded = modules_after("import saw; saw.compute_advantage")
    assert "torch" in loaded
    assert not loaded & {"verl", "ray", "vllm", "transformers", "hydra", "wrapt"}


@pytest.mark.parametrize("module", ["saw", "saw.runs.process_tree", "saw.records.metrics_file"])
def test_what_follows_a_run_needs_no_torch(module):
    assert not modules_after(f"import {module}") & {"torch", "numpy", "verl", "ray"}


def test_every_public_name_is_there():
    for name in set(saw.__all__) - {"METHODS", "PROFILES"}:
        assert getattr(saw, name).__name__ == name
    assert "saw_gdpo" in saw.METHODS
    assert "paper" in saw.PROFILES
    assert set(saw.__all__) <= set(dir(saw))
    with pytest.raises(AttributeError, match="nope"):
        _ = saw.nope


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", ""])
def test_importing_verl_loads_next_to_nothing_of_the_plug_in(platform):
    loaded = modules_after(
        "import verl, verl.workers.rollout.llm_server", VERL_USE_EXTERNAL_MODULES="saw.verl", VERL_PLATFORM=platform
    )
    ours = {name for name in loaded if name.split(".")[0] in ("saw", "recipes", "data_prep")}
    expected = {
        "saw",
        "saw.verl",
        "saw.verl.version",
        "saw.verl.names",
        "saw.verl.patches",
        "saw.verl.patches.validate_config",
    }
    assert ours - {"saw.verl.patches.cpu"} <= expected
    assert ("saw.verl.patches.cpu" in ours) == (platform == "cpu")
    assert not loaded & {"vllm", "pyarrow.parquet", "aiohttp.web"}


@pytest.mark.slow
def test_verls_own_trainers_load_nothing_more_of_the_plug_in():
    code = (
        "import verl.trainer.main_ppo, verl.trainer.ppo.v1, verl.workers.engine_workers, verl.experimental.reward_loop"
    )
    loaded = modules_after(code, VERL_USE_EXTERNAL_MODULES="saw.verl", VERL_PLATFORM="cpu")
    heavy = {
        "saw.verl.trainer",
        "saw.verl.config",
        "saw.verl.gradients",
        "saw.verl.patches.weight_socket",
        "saw.verl.reward_manager",
    }
    assert not loaded & heavy
