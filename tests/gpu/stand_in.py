"""A stand-in for an accelerator: tensors that claim to be elsewhere, and are computed on the CPU.

It refuses what an accelerator refuses, tensors of two devices in one operation, and counts what makes the host wait.
So a device that is mixed up shows on a machine without one. It claims to be torch's ``meta`` device, the only one
besides the CPU that every build of torch knows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
aten = torch.ops.aten
#: Operations whose answer, or whose size, the host has to wait for. It waits for a copy in either direction too.
WAITS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default}


class Elsewhere(Tensor):
    """A tensor on the stand-in device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on the stand-in device outside of StandIn")


def is_there(device: torch.device | str | None) -> bool:
    """Whether it is the stand-in device."""
    return device is not None and torch.device(device) == DEVICE


class _Operations(TorchDispatchMode):
    """Every operation, on the held tensors."""

    def __init__(self, waits: list[str]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
        here = any(not isinstance(tensor, Elsewhere) and tensor.ndim for tensor in tensors)  # a scalar may be anywhere
        if there and here:
            raise RuntimeError(f"{func}: expected all tensors on one device, found the stand-in device and the CPU")
        leaves = there and kwargs.get("device") is not None and not is_there(kwargs["device"])
        arrives = bool(tensors) and not there and is_there(kwargs.get("device"))
        if arrives or (there and (leaves or func in WAITS)):
            self.waits.append(str(func))
        stays = (there and not leaves) or is_there(kwargs.get("device"))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.held, (args, kwargs))
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, Elsewhere, result) if stays else result


class _Python(TorchFunctionMode):
    """What torch does below the operations: numbers from the host, and lists for it."""

    def __init__(self, waits: list[str]):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.as_tensor, torch.tensor) and is_there(kwargs.get("device")):
            made = func(*args, **{**kwargs, "device": None})
            if isinstance(made, Elsewhere):
                return made
            self.waits.append(str(func))  # a copy from the host's pageable memory
            return Elsewhere(made)
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            self.waits.append("tolist")
            return args[0].held.tolist()
        return func(*args, **kwargs)


class StandIn:
    """Use the stand-in device in the block.

    Attributes:
        waits (list[str]): what made the host wait so far.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self._modes = (_Operations(self.waits), _Python(self.waits))

    def __enter__(self) -> StandIn:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
