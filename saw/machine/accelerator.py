"""Chooses whether a training runs on GPUs or on the CPU, by what torch can use; no other Python code does.

``SAW_PLATFORM``, cpu or gpu, decides if it is set. Otherwise this machine is probed. A GPU that torch can't use is an
error: a training that silently ran on the CPU instead would take months.
"""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from saw.machine import environment

#: Where NVIDIA's kernel module shows its version. It exists in a container without GPUs too.
DRIVER_FILE = Path("/proc/driver/nvidia/version")
#: The folder of the device files, ``nvidia0`` and so on.
DEVICE_FOLDER = Path("/dev")
#: Major version of CUDA -> the oldest driver (major version) that supports all its minor versions.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
#: First entries of CUDA_VISIBLE_DEVICES that hide every GPU; Slurm sets the last one.
HIDES_ALL = ("", "-1", "NoDevFiles")
#: The start of the reason if the CPU was chosen only because there is no accelerator.
NO_ACCELERATOR = "this machine has no accelerator"
REHEARSE = "SAW_PLATFORM=cpu rehearses on the CPU (a table: with --rehearse)"


class AcceleratorError(RuntimeError):
    """A platform that can't be used; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name (str): torch's or nvidia-smi's name for it.
        memory (int | None): in bytes; None if torch can't tell.
        capability (tuple[int, int] | None): CUDA's compute capability; None likewise, and for other vendors' devices.
    """

    name: str
    memory: int | None = None
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Found:
    """What this machine has.

    Attributes:
        driver (str | None): version of NVIDIA's driver; None if there is none.
        devices (tuple[Device, ...]): those that torch can use; if it can use none, all NVIDIA devices.
        torch_cuda (str | None): the CUDA that torch is built for; None for a build without.
        usable (bool): torch can use an accelerator.
        error (str | None): the error of torch or nvidia-smi.
        broken (bool): nvidia-smi exists but fails or lists nothing: a driver without its kernel module, for example.
    """

    driver: str | None
    devices: tuple[Device, ...]
    torch_cuda: str | None
    usable: bool
    error: str | None
    broken: bool = False

    @property
    def usable_devices(self) -> tuple[Device, ...]:
        """The devices that a training could use; only these count."""
        return self.devices if self.usable else ()

    @property
    def memory(self) -> int | None:
        """Bytes that a program can use of the smallest device; None if there is none, or its memory is unknown."""
        return min((device.memory for device in self.usable_devices if device.memory), default=None)


@dataclass(frozen=True)
class Platform:
    """The chosen platform.

    Attributes:
        name (str): ``cpu`` or ``gpu``, a file of ``configs/platform``.
        reason (str): why it was chosen.
    """

    name: str
    reason: str


def probe() -> Found:
    """Probe this machine."""
    import torch

    with warnings.catch_warnings(record=True) as caught:  # torch warns why it can't use a GPU
        warnings.simplefilter("always")
        usable = torch.accelerator.is_available()
        devices = _torch_devices() if usable else ()
    error = None if usable else "; ".join(str(warning.message) for warning in caught) or None
    if usable and torch.version.cuda is not None:
        error = _unsupported(devices, torch.cuda.get_arch_list())
        usable = error is None
    complaint = None
    if not usable and not devices:
        devices, complaint = _nvidia_devices()
        error = error or complaint
    return Found(_driver(), devices, torch.version.cuda, usable, error, broken=complaint is not None)


def cluster_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """The Ray cluster that ``RAY_ADDRESS`` names; None if it names none: ``local`` asks for a new one."""
    address = environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def decide(environ: Mapping[str, str] = os.environ, probe: Callable[[], Found] = probe) -> Platform:
    """The platform of a training that starts in this environment.

    Args:
        environ (Mapping[str, str]): ``SAW_PLATFORM``, ``VERL_PLATFORM``, ``RAY_ADDRESS``, ``CUDA_VISIBLE_DEVICES``.
        probe (Callable[[], Found]): probes the machine; called only if the variables do not decide.

    Raises:
        AcceleratorError: for variables that contradict each other, and for a GPU that torch can't use.
    """
    asked, verl = (environ.get(name, "").strip().lower() for name in ("SAW_PLATFORM", "VERL_PLATFORM"))
    if asked not in ("", "cpu", "gpu"):
        raise AcceleratorError(f"SAW_PLATFORM is {environ['SAW_PLATFORM']!r}; expected cpu or gpu")
    if asked == "gpu" and verl == "cpu":
        raise AcceleratorError(
            "SAW_PLATFORM is gpu and VERL_PLATFORM is cpu, so verl would train on the CPU: unset VERL_PLATFORM, "
            "or set SAW_PLATFORM=cpu"
        )
    told = f"SAW_PLATFORM is {asked}" if asked else f"VERL_PLATFORM is {verl}" if verl else ""
    if "cpu" in (asked, verl):
        overruled = f", which overrules VERL_PLATFORM={verl}" if verl not in ("", "cpu") else ""
        return Platform("cpu", told + overruled)
    if address := cluster_address(environ):
        return Platform("gpu", told or f"RAY_ADDRESS is {address}, and that cluster's nodes have the accelerators")
    return _by_machine(told, environ.get("CUDA_VISIBLE_DEVICES"), probe)


def _by_machine(told: str, visible: str | None, probe: Callable[[], Found]) -> Platform:
    hidden = visible is not None and visible.split(",")[0].strip() in HIDES_ALL
    if hidden and not told:
        return Platform("cpu", f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides the GPUs")
    found = probe()
    if found.usable:
        return Platform("gpu", f"{told + '; ' if told else ''}torch can use {describe(found.devices)}")
    if (found.devices or found.broken) and not hidden:
        raise AcceleratorError(unusable(found, visible))
    if told:
        return Platform("gpu", f"{told}; this machine has no accelerator that torch can use")
    return Platform("cpu", NO_ACCELERATOR + (f" ({found.error})" if found.error else ""))


def describe(devices: tuple[Device, ...]) -> str:
    """Devices in words, with a count of equal ones."""
    names = [device.name for device in devices]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def visible(found: Found, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that torch can use, each as ``CUDA_VISIBLE_DEVICES`` names it: an index, or the entry that is set."""
    count = len(found.usable_devices)  # CUDA ignores the entries from the first invalid one on
    given = environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else (name.strip() for name in given.split(","))
    return tuple(names)[:count]


def driver_needed(torch_cuda: str) -> int | None:
    """The oldest driver (major version) for a CUDA such as ``13.0``; None for an unknown CUDA."""
    return OLDEST_DRIVER.get(int(torch_cuda.split(".")[0]))


def unusable(found: Found, visible: str | None = None) -> str:
    """Why torch can't use this machine's GPUs, and the remedy.

    Args:
        found (Found): has devices, none of them usable.
        visible (str | None): ``CUDA_VISIBLE_DEVICES``.
    """
    what = describe(found.devices) or "nvidia-smi, but no GPU,"
    there = f"{what} found, driver {found.driver or 'unknown'}, and torch can't use it"
    if found.torch_cuda is None:
        return f"{there}: this torch is built without CUDA. To fix it, {environment.cuda()}; {REHEARSE}"
    needed = driver_needed(found.torch_cuda)
    if needed is not None and found.driver is not None and int(found.driver.split(".")[0]) < needed:
        remedy = "Update the driver, or use an environment of your own, with a torch for it (docs/installation.md)"
    elif visible is not None:
        remedy = f"CUDA_VISIBLE_DEVICES is {visible!r}: set it to existing GPUs, or unset it"
    else:
        remedy = "See what nvidia-smi prints"
    says = f" torch says: {found.error}." if found.error else ""
    needs = f"its CUDA {found.torch_cuda} needs driver {needed or '(see NVIDIA)'} or newer"
    return f"{there}: {needs}.{says} {remedy}; {REHEARSE}"


def _torch_devices() -> tuple[Device, ...]:
    import torch

    if not torch.cuda.is_available():  # another vendor's
        kind = torch.accelerator.current_accelerator()
        return (Device(kind.type if kind else "accelerator"),) * torch.accelerator.device_count()
    found = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return tuple(Device(each.name, each.total_memory, (each.major, each.minor)) for each in found)


def _unsupported(devices: tuple[Device, ...], built_for: list[str]) -> str | None:
    """The first device for which torch has no kernels: CUDA 13 dropped those before Turing, but torch lists them.

    Args:
        devices (tuple[Device, ...]): CUDA's.
        built_for (list[str]): such as ``sm_80``, code for its major version, and ``compute_80``, for all later ones.
    """
    exact = [_capability(arch) for arch in built_for if arch.startswith("sm_")]
    onwards = [_capability(arch) for arch in built_for if arch.startswith("compute_")]
    for device in devices:
        has = device.capability
        if has is None or any(has[0] == arch[0] and has >= arch for arch in exact) or any(has >= a for a in onwards):
            continue
        return (
            f"{device.name} has compute capability {has[0]}.{has[1]}, and this torch is built for "
            f"{' '.join(built_for)}; hide it with CUDA_VISIBLE_DEVICES, or install a torch for it"
        )
    return None


def _capability(arch: str) -> tuple[int, int]:
    digits = re.sub(r"\D", "", arch.split("_")[1])
    return int(digits[:-1]), int(digits[-1])


def _driver() -> str | None:
    # the line after it has the compiler's version
    if DRIVER_FILE.exists() and (found := re.search(r"NVRM.*?\s(\d+\.\d+(?:\.\d+)*)\s", DRIVER_FILE.read_text())):
        return found[1]
    listed, _ = _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")  # WSL has no such file
    return next((line.strip() for line in listed if re.fullmatch(r"\d+(\.\d+)+", line.strip())), None)


def _nvidia_devices() -> tuple[tuple[Device, ...], str | None]:
    """NVIDIA's devices, whether or not torch can use them, and nvidia-smi's error."""
    listed, complaint = _nvidia_smi("-L")
    names = [found[1] for line in listed if (found := re.match(r"GPU \d+: (.+?)(?: \(UUID|$)", line))]
    if not names:
        nodes = sorted(path.name for path in DEVICE_FOLDER.glob("nvidia[0-9]*"))
        names = ["NVIDIA GPU"] * len(nodes)
        complaint = complaint or next((f"nvidia-smi: {line}" for line in listed if line.strip()), None)
    return tuple(Device(name) for name in names), complaint


def _nvidia_smi(*arguments: str) -> tuple[list[str], str | None]:
    """The lines that nvidia-smi prints, and its error if it fails; neither if it is not installed."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        return [], None
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"nvidia-smi: {error}"
    if done.returncode != 0:
        return [], f"nvidia-smi: {' '.join((done.stderr or done.stdout).split())}"
    return done.stdout.splitlines(), None
