"""The method on a GPU agrees with the method on a CPU."""

import pytest
import torch

import saw
from saw.methods import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("profile", ["paper", "released"])
@pytest.mark.parametrize("method", METHODS)
def test_cuda_agrees_with_cpu(method, profile):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(4096, 3, generator=generator)
    rewards[torch.rand(4096, 3, generator=generator) < 0.1] = torch.nan
    groups = [f"p{i // 4}" for i in range(4096)]
    mask = torch.arange(64) < torch.randint(0, 65, (4096, 1), generator=generator)
    own = {"static": {"static_weights": (1, 2, 3)}, "gradient": {"gradient": {"lr": 1e-6}}}
    options = {"profile": profile} | own.get(method.partition("_")[0], {})
    gram = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 1.0]])
    here = saw.compute_advantage(rewards, groups, mask, method=method, options=options, gram=gram)
    there = saw.compute_advantage(rewards.cuda(), groups, mask.cuda(), method=method, options=options, gram=gram)
    assert there.tokens.device.type == "cuda"
    torch.testing.assert_close(there.tokens.cpu(), here.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.weights.cpu(), here.weights, atol=1e-12, rtol=0)


def test_memory_on_the_device_is_one_tensor_of_the_output():
    mask = torch.ones(8192, 1024, dtype=torch.int64, device="cuda")
    rewards = torch.rand(8192, 2, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    saw.compute_advantage(rewards, range(8192), mask, method="saw_gdpo")
    assert torch.cuda.max_memory_allocated() - before < 2 * 8192 * 1024 * 4
