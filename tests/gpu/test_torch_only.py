"""The method on a GPU agrees with the method on a CPU.

Needs torch, numpy, pydantic and pytest alone, so that it runs in a folder that has only saw/, benchmarks/,
tests/__init__.py and tests/gpu/ (docs/gpu_tests.md)::

    python -m pytest tests/gpu/test_torch_only.py -p no:cacheprovider --noconftest

Without a GPU, a stand-in takes its place where results are compared, and the CPU elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saw
from benchmarks.advantage import measure_extra_bytes
from saw.method.options import PROFILES, GradientOptions, Options
from saw.method.registry import METHODS
from tests.gpu.stand_in import DEVICE, Elsewhere, StandIn
from tests.methods import own_options

ROOT = Path(__file__).resolve().parents[2]
N, K, T = 512, 3, 64
GRAM = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 1.0]])
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.fixture(params=["stand-in", CUDA])
def accelerator(request) -> str:
    """A device that is not the CPU."""
    return request.param


@pytest.fixture(params=["cpu", CUDA])
def device(request) -> str:
    """A device that torch computes on."""
    return request.param


def put(tensor: Tensor, device: str) -> Tensor:
    """The tensor on a device."""
    return Elsewhere(tensor) if device == "stand-in" else tensor.to(device)


def get(tensor: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return tensor.held if isinstance(tensor, Elsewhere) else tensor.cpu()


def made(n: int = N, missing: float = 0.0) -> tuple[Tensor, list[str], Tensor]:
    """Rewards, groups and mask of a step; flat groups, empty responses and a group of one are among them."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(n, K, generator=generator)
    rewards[:, 1] = torch.randint(0, 2, (n,), generator=generator)
    rewards[torch.rand(n, K, generator=generator) < missing] = torch.nan
    mask = torch.arange(T) < torch.randint(0, T + 1, (n, 1), generator=generator)
    return rewards, ["alone", *(f"p{i // 4}" for i in range(n - 1))], mask


#: For a method that needs the objectives' ranges.
RANGES = [saw.Objective("a", 0.0, 1.0), saw.Objective("b", 0.0, 1.0), saw.Objective("c", 0.0, 1.0)]
OBJECTIVES = [saw.Objective("a", -1.0), saw.Objective("b", 0.0, priority=0.5), saw.Objective("c", -3.0, priority=2.0)]
CTWA = {"memory": {"next_weights": [0.2, 0.5, 0.3], "covariance": [0.1, 0.2, -0.3]}}
#: What an option, or an argument of the function, adds to a method.
OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(
        (
            "saw_gdpo",
            {"informativeness": name, "over": over},
            {"objectives": [saw.Objective(str(k), 0.0, 1.0) for k in range(K)]},
        )
        for name in ("cv", "normalised_variance", "range_std", "advantage_entropy", "group_spread")
        for over in ("batch", "group")
    ),
    ("saw_grpo", {"informativeness": "gradient_norm"}, {}),
    ("saw_grpo", {"ema": 0.5, "floor": 0.2, "max_change": 0.05}, {"previous_weights": [0.2, 0.5, 0.3]}),
    ("saw_gdpo", {"log_only": True}, {}),
    ("saw_gdpo", {}, {"objectives": [*RANGES[:2], saw.Objective("c", 0.0, 1.0, requires={"b": 1.0})]}),
    ("ctwa", {"ctwa": {"targets": (0.9, 0.5, 0.9), "enough": (0.5, None, None), "ema": 0.5, "lr": 1.0}}, CTWA),
    ("gradnorm", {"gradnorm": {"alpha": 0.5, "lr": 0.1}}, {"objectives": RANGES}),
    ("lagrangian", {"lagrangian": {"targets": (None, 0.9, 0.1), "lr": 1.0}}, {"memory": {"multipliers": [1, 2, 3]}}),
    ("random_gdpo", {"seed": 3}, {"step": 5}),
    ("gradient_gdpo", {"gradient": {"lr": 1e-6, "mu": 1e-4, "accumulate": 2, "clip": 1.0}}, {"step": 4}),
    ("gradient_grpo", {"gradient": {"lr": 1e-6, "accumulate": 2}}, {"step": 5, "previous_weights": [0.2, 0.5, 0.3]}),
    ("saw_grpo", {}, {"objectives": OBJECTIVES, "penalty": torch.arange(N) / N}),
]


def test_every_option_is_compared():
    """But ``layers`` and ``reduction``, which are about a model; the profile and the static weights are below."""
    used = {name for _, options, _ in OPTIONS for name in options}
    assert used | {"profile", "static_weights"} == set(Options.model_fields)
    gradient = {name for _, options, _ in OPTIONS for name in options.get("gradient", {})}
    assert gradient | {"layers", "reduction"} == set(GradientOptions.model_fields)


CASES = [
    *(
        (method, {"profile": profile} | own_options(method, K), {"objectives": RANGES})
        for method in METHODS
        for profile in PROFILES
    ),
    *OPTIONS,
]


#: What a profile changes comes after what is left out, so one profile is enough without missing rewards.
WITHOUT_MISSING = [case for case in CASES if case[1].get("profile", "paper") == "paper"]


@pytest.mark.parametrize(
    ("method", "options", "more", "missing"),
    [*((*case, 0.1) for case in CASES), *((*case, 0.0) for case in WITHOUT_MISSING)],
)
def test_an_accelerator_agrees_with_the_cpu(accelerator, method, options, more, missing):
    rewards, groups, mask = made(missing=missing)
    given = {"method": method, "options": options, "gram": GRAM, **more}
    here = saw.compute_advantage(rewards, groups, mask, **given)
    with StandIn() if accelerator == "stand-in" else nullcontext():
        there = saw.compute_advantage(put(rewards, accelerator), groups, put(mask, accelerator), **given)
    compare(there, here)


def compare(there: saw.Advantage, here: saw.Advantage) -> None:
    """All that the function returns: float64 but for the tokens, whose last digit may be rounded the other way."""
    assert there.tokens.device.type in ("cuda", DEVICE.type)
    torch.testing.assert_close(get(there.tokens), here.tokens, atol=1e-6, rtol=1e-6)
    for name in ("samples", "weights", "proposed"):
        assert getattr(there, name).device == there.tokens.device
        torch.testing.assert_close(get(getattr(there, name)), getattr(here, name), atol=1e-11, rtol=1e-11)
    assert there.memory.keys() == here.memory.keys()
    for name, values in here.memory.items():
        torch.testing.assert_close(get(there.memory[name]), values, atol=1e-11, rtol=1e-11)
    for field in fields(here.statistics):
        found, expected = getattr(there.statistics, field.name), getattr(here.statistics, field.name)
        torch.testing.assert_close(get(found), expected, atol=1e-12, rtol=1e-12, equal_nan=True)


def test_the_mask_says_where_the_work_is_done(accelerator):
    """What comes from the host is copied there: rewards, bounds, priorities, weights, a penalty."""
    rewards, groups, mask = made()
    given = {
        "objectives": OBJECTIVES,
        "penalty": torch.arange(N) / N,
        "previous_weights": torch.full((K,), 1 / K),
        "options": {"ema": 0.5},
        "method": "saw_grpo",
    }
    here = saw.compute_advantage(rewards, groups, mask, **given)
    with StandIn() if accelerator == "stand-in" else nullcontext():
        compare(saw.compute_advantage(rewards, groups, put(mask, accelerator), **given), here)


def test_objective_advantages_agree(accelerator):
    rewards, groups, _ = made(missing=0.1)
    here = saw.objective_advantages(rewards, groups)
    with StandIn() if accelerator == "stand-in" else nullcontext():
        there = saw.objective_advantages(put(rewards, accelerator), groups)
    torch.testing.assert_close(get(there), here, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("change", [{"rewards": torch.inf}, {"rewards": -1.0}, {"mask": 2}])
def test_what_is_wrong_is_refused_with_the_same_words(accelerator, change):
    rewards, groups, mask = made()
    mask = mask.long()
    target = rewards if "rewards" in change else mask
    target[7, 1] = next(iter(change.values()))
    with pytest.raises(ValueError) as here:  # noqa: PT011  compared below
        saw.compute_advantage(rewards, groups, mask, method="saw_gdpo")
    with StandIn() if accelerator == "stand-in" else nullcontext(), pytest.raises(ValueError) as there:  # noqa: PT011
        saw.compute_advantage(put(rewards, accelerator), groups, put(mask, accelerator), method="saw_gdpo")
    assert str(there.value) == str(here.value)


def test_bfloat16_costs_nothing_but_the_digits_of_the_rewards(device):
    """A mask of 512 ones is still 512 tokens, though bfloat16 cannot count so far."""
    rewards, groups, _ = made()
    rewards = rewards.bfloat16()
    mask = torch.arange(512) < torch.randint(0, 513, (N, 1), generator=torch.Generator().manual_seed(1))
    exact = saw.compute_advantage(rewards.float().to(device), groups, mask.float().to(device), method="saw_gdpo")
    found = saw.compute_advantage(rewards.to(device), groups, mask.bfloat16().to(device), method="saw_gdpo")
    assert found.tokens.dtype == torch.float32
    torch.testing.assert_close(found.tokens, exact.tokens, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.weights, exact.weights, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_memory_is_one_tensor_of_the_output(device, dtype):
    n, t = 4096, 1024
    mask = torch.ones(n, t, dtype=dtype, device=device)
    rewards = torch.rand(n, 2, device=device)
    extra = measure_extra_bytes(lambda: saw.compute_advantage(rewards, range(n), mask, method="saw_gdpo"), device)
    assert 1.0 <= extra / (n * t * 4) < 1.25


@pytest.mark.parametrize("method", ["saw_grpo", "saw_gdpo"])
def test_twice_the_same_is_the_same(device, method, monkeypatch):
    """To the bit where torch is asked for it; else sums may be added up in another order."""
    rewards, groups, mask = (part.to(device) if isinstance(part, Tensor) else part for part in made(missing=0.1))

    def once() -> saw.Advantage:
        return saw.compute_advantage(rewards, groups, mask, method=method)

    torch.testing.assert_close(once().samples, once().samples, atol=1e-12, rtol=1e-12)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses products on CUDA in this mode
    torch.use_deterministic_algorithms(True)
    try:
        first, second = once(), once()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.weights, second.weights)


def count_waits(function: Callable[[], object], device: str) -> int:
    """How often the host waits for the device."""
    if device == "stand-in":
        with StandIn() as stand_in:
            function()
        return len(stand_in.waits)
    function()  # what is loaded at the first call
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("method", METHODS)
def test_the_host_waits_for_the_checks_alone(accelerator, method):
    """A few copies, however large the batch: none for each sample, group or objective. An H100 counted 12 at most."""

    def waits(n: int) -> int:
        rewards, groups, mask = made(n)
        rewards, mask = put(rewards, accelerator), put(mask.long(), accelerator)
        given = {"method": method, "options": own_options(method, K), "gram": GRAM, "objectives": RANGES}
        return count_waits(lambda: saw.compute_advantage(rewards, groups, mask, **given), accelerator)

    assert 0 < waits(64) == waits(N) <= 12


@pytest.mark.slow
def test_the_benchmark_runs(device):
    command = [sys.executable, "-m", "benchmarks.advantage", "--device", device]
    command += ["--sizes", "64x32", "--objectives", "2", "--repeats", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for case in ("plain multiply", "saw gdpo", "saw saw_gdpo"):
        assert f"| 64x32 | 2 | kept | {case} |" in result.stdout


def test_the_method_needs_torch_numpy_and_pydantic_alone():
    code = """
import sys
for name in ("verl", "ray", "vllm", "hydra", "omegaconf", "transformers", "tensordict", "wrapt", "psutil", "pandas"):
    sys.modules[name] = None
import torch, saw
print(saw.compute_advantage(torch.rand(8, 2), range(8), torch.ones(8, 4), method="saw_gdpo").tokens.shape)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "torch.Size([8, 4])", result.stderr


# ---------------------------------------------------------------- the stand-in itself


def test_the_stand_in_refuses_tensors_of_two_devices():
    with StandIn(), pytest.raises(RuntimeError, match="one device"):
        Elsewhere(torch.ones(3)) + torch.ones(3)
    with StandIn():  # a number from the host may meet any device
        assert (Elsewhere(torch.ones(3)) + torch.tensor(1.0)).held.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda x: x.tolist(), 1),
        (lambda x: x.sum().item(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: torch.ones(3).to(x.device), 1),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: torch.ones(3, device=x.device), 0),
        (lambda x: x.double().sum(dim=0) * 2, 0),
    ],
)
def test_the_stand_in_counts_what_the_host_waits_for(read, waits):
    with StandIn() as stand_in:
        read(Elsewhere(torch.ones(3)))
    assert len(stand_in.waits) == waits
