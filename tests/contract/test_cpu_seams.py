"""What saw/verl/patches/cpu.py and saw/verl/patches/vllm_cpu.py patch, and that the patches are still needed."""

import inspect
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from ray._private.utils import set_omp_num_threads_if_unset
from verl.plugin.platform import platform_base, platform_manager
from verl.utils import distributed, fsdp_utils
from verl.workers.engine import base as engine_base
from verl.workers.engine.fsdp import transformer_impl

from recipes.common.serve import serve_arguments
from tests.conftest import PLATFORM

if PLATFORM != "cpu":  # importing the patches changes verl in this process
    pytest.skip("about verl on a CPU, and the tests run on a GPU here", allow_module_level=True)

from saw.verl.patches import cpu, vllm_cpu


def test_platform_implements_verls_interface():
    assert platform_manager.PlatformRegistry.get("cpu") is cpu.PlatformCPU
    assert not cpu.PlatformCPU.__abstractmethods__
    platform = cpu.PlatformCPU()
    assert platform.device_name == "cpu"
    assert not platform.is_ipc_supported()
    assert platform.ray_resource_options(1) == {"num_gpus": 1}
    torch.zeros(1).to(platform.current_device())


def test_device_module_answers_what_verl_asks():
    for name in ("memory_allocated", "max_memory_reserved", "empty_cache", "synchronize", "is_available"):
        getattr(cpu.PlatformCPU.device_module, name)()
    assert cpu.PlatformCPU.device_module.mem_get_info() == (0, 0)


def test_verl_has_no_cpu_platform_of_its_own():
    assert not hasattr(platform_base, "PlatformCPU")
    assert "platform_cpu" not in inspect.getsource(platform_manager)


def test_process_group_would_name_the_cpu_twice():
    source = inspect.getsource(distributed.initialize_global_process_group_ray.func)
    assert 'backend or f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"' in source
    assert distributed.initialize_global_process_group_ray.keywords == {"backend": "cpu:gloo"}


def test_offload_policy_would_pin_memory():
    assert "CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(transformer_impl)
    assert fsdp_utils.CPUOffloadPolicy(pin_memory=True).pin_memory is False
    assert transformer_impl.CPUOffloadPolicy is fsdp_utils.CPUOffloadPolicy


def test_engine_is_picked_by_an_environment_variable():
    assert "VERL_ENGINE_DEVICE" in inspect.getsource(engine_base)


@pytest.mark.cpu_build
def test_vllm_finds_itself_under_its_own_name():
    assert version("vllm") == f"{version('vllm-cpu')}+cpu"


@pytest.mark.parametrize("platform", ["cpu", "nvidia"])
def test_vllm_keeps_linear_weights_on_a_cpu_only(monkeypatch, platform):
    from vllm.model_executor.layers import linear, utils

    stock = utils.dispatch_cpu_unquantized_gemm
    assert list(inspect.signature(stock).parameters) == ["layer", "remove_weight"]
    # verl imports it where it is called, so replacing it in its module is enough.
    assert "import dispatch_cpu_unquantized_gemm" in inspect.getsource(linear.UnquantizedLinearMethod)
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", stock)
    monkeypatch.setenv("VERL_PLATFORM", platform)
    vllm_cpu.register()
    if platform != "cpu":
        assert utils.dispatch_cpu_unquantized_gemm is stock
        return
    layer = torch.nn.Linear(4, 2)
    before = layer.weight
    utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    assert layer.weight is before
    x = torch.rand(3, 4)
    torch.testing.assert_close(layer.cpu_linear(x, layer.weight, layer.bias), layer(x))


def test_threads_without_work_sleep():
    """The variable that libgomp (torch's) and libiomp (vLLM's) read when loaded; Ray's processes inherit it."""
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["KMP_BLOCKTIME"] == "0"


@pytest.mark.parametrize("told", [None, "1"])
def test_rays_workers_may_use_all_cores(told):
    """Ray, which inherits this process's variables, gives a worker one thread where this one is not set."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": told} if told else {}
    code = "import os, torch, saw.verl.patches.cpu; print(os.environ['OMP_NUM_THREADS'], torch.get_num_threads())"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    variable, threads = found.stdout.split()[-2:]
    assert variable == threads
    assert told in (None, variable)
    assert 'os.environ.get("OMP_NUM_THREADS")' in inspect.getsource(set_omp_num_threads_if_unset)


def test_a_seed_for_a_split_prompt_would_end_vllm():
    """Why recipes.common.serve splits no prompts on a CPU: vLLM moves a generator's offset, and CPU ones have none."""
    from vllm.v1.worker import gpu_model_runner

    assert "gen.set_offset(gen.get_offset() - 4)" in inspect.getsource(gpu_model_runner)
    with pytest.raises(RuntimeError, match="does not use offset"):
        torch.Generator().get_offset()
    assert "--no-enable-chunked-prefill" in serve_arguments("model", port=1, gpus=0, arguments=())
    assert "--no-enable-chunked-prefill" not in serve_arguments("model", port=1, gpus=1, arguments=())
