"""The provenance of a number: commit, machine and package versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def commit() -> str:
    """This repository's commit, with ``-dirty`` appended if files differ; ``unknown`` without git or a checkout."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return result.stdout.strip() or "unknown"


def machine(device: str | None = None) -> str:
    """Describe the machine: its GPUs if ``device`` is cuda, or if it is None and there are any; otherwise its CPU."""
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{_cpu_name()}, {os.cpu_count()} cores, no GPU"


def versions(*packages: str) -> str:
    """Versions of the packages that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
