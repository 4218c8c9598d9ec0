"""verl on a CPU: a platform, and patches of verl 0.9.1.

It is loaded only under ``VERL_PLATFORM=cpu``. verl 0.9.1 has a registry for platforms, but no CPU in it. Each patch
below gives its reason and has a contract test in ``tests/contract/test_cpu_seams.py`` that fails when upstream changes.
The matching configuration is ``configs/platform/cpu.yaml``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import types
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from wrapt import lazy_import, when_imported

# verl selects its FSDP engine by device name, and registers it only for "cuda" and "npu".
os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
# In a rehearsal, compiling small functions for a CPU takes longer than running them (20 s at vLLM's first request).
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Idle threads sleep. By default they spin, and take the cores from the dozens of other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")


def _device_module() -> types.ModuleType:
    """``torch.cpu`` with the accelerator calls that verl makes: memory is 0, and synchronising does nothing."""
    zeros = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved", "current_device")
    nothing = ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "synchronize", "set_device", "manual_seed_all")
    module = types.ModuleType("saw.verl.patches.cpu.device")
    vars(module).update(
        {name: lambda *args, **kwargs: 0 for name in zeros}
        | {name: lambda *args, **kwargs: None for name in nothing}
        | {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "mem_get_info": lambda *args: (0, 0),
            "get_device_name": lambda *args: "cpu",
            "manual_seed": torch.manual_seed,
            "get_rng_state": lambda *args: torch.get_rng_state(),
            "set_rng_state": lambda state, *args: torch.set_rng_state(state),
            "Stream": torch.cpu.Stream,
            "stream": torch.cpu.stream,
            "current_stream": torch.cpu.current_stream,
        }
    )
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """A CPU as verl's accelerator. Ray counts it as a logical GPU, because verl places its workers by GPUs."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        """A CPU is always available."""
        return True

    def current_device(self) -> str:  # type: ignore[override]
        """The device to move tensors to: torch would take an index for an accelerator."""
        return "cpu"

    def device_count(self) -> int:
        """One."""
        return 1

    def set_device(self, device_index: int) -> None:
        """Nothing to choose."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Nothing runs asynchronously."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch's only generator."""
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        """There is no caching allocator."""

    def empty_cache(self) -> None:
        """There is no cache."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """No compute capability."""
        return None, None

    def communication_backend_name(self) -> str:
        """Collectives go through gloo."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Ray sets this for the logical GPU; nothing reads it."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        """No profiler ranges."""
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        """The logical GPU."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Ray may set the variable of visible devices."""
        return []

    def is_ipc_supported(self) -> bool:
        """No: verl then hands weights to vLLM through shared memory."""
        return False

    def cudart(self) -> Any:
        """No CUDA runtime."""
        return None


@when_imported("verl.utils.distributed")
def _name_the_cpu_once(distributed: Any) -> None:
    # verl asks for the process group "cpu:gloo,<device>:<backend>", which names the CPU twice; torch refuses that.
    distributed.initialize_global_process_group_ray = functools.partial(
        distributed.initialize_global_process_group_ray, backend="cpu:gloo"
    )


@when_imported("verl.utils.fsdp_utils")
def _offload_unpinned(fsdp_utils: Any) -> None:
    # A reference model under fsdp2 is offloaded to pinned memory, which a CPU build of torch refuses.
    stock = fsdp_utils.CPUOffloadPolicy
    fsdp_utils.CPUOffloadPolicy = lambda pin_memory=False: stock(pin_memory=False)


@when_imported("verl.utils.fsdp_utils")
def _save_copies(fsdp_utils: Any) -> None:
    # separate_async saves a step's first weights to the CPU, for all of its mini-batches. Weights that are on the CPU
    # already would be saved without a copy, and so change with the next update.
    stock = fsdp_utils.fsdp2_sharded_save_to_cpu

    @functools.wraps(stock)
    def save(model: torch.nn.Module) -> tuple[dict[str, tuple[torch.Tensor, Any]], Any]:
        shards, spec = stock(model)
        return {name: (shard.clone(), own) for name, (shard, own) in shards.items()}, spec

    fsdp_utils.fsdp2_sharded_save_to_cpu = save


@when_imported("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer")
def _show_why_a_weight_was_not_loaded(bucketed_weight_transfer: Any) -> None:
    # On a CPU the weights that vLLM loads are views of the shared buffer. If loading fails, its error still holds them,
    # so verl cannot close the buffer, and "cannot close exported pointers exist" would be raised instead of that error.
    # Tested in tests/contract/test_weight_socket.py.
    receiver = bucketed_weight_transfer.BucketedWeightReceiver
    stock = receiver._cleanup

    @functools.wraps(stock)
    def cleanup(self: Any) -> None:
        loading_failed = sys.exc_info()[0] is not None
        with contextlib.suppress(*[BufferError] * loading_failed):
            stock(self)

    receiver._cleanup = cleanup


@when_imported("verl.checkpoint_engine.base")
def _register_weight_transfer(base: Any) -> None:
    # verl has none for a CPU; only a trainer with a separate rollout uses it.
    engine = lazy_import("saw.verl.patches.cpu_weights", "CPUCheckpointEngine")
    base.CheckpointEngineRegistry._registry["cpu"] = engine
