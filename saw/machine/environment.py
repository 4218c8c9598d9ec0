"""Commands for the user to run or fix the current Python environment.

An environment that ``scripts/setup.sh`` made is not active in a shell, so a plain ``python`` is a different one. It
installs nothing into an environment that it did not make, so there the remedy is a pip command. Standard library only:
the doctor needs this most when packages are missing.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

#: The file that scripts/setup.sh writes into an environment that it made; its first word is the set.
MARK = ".saw-setup"
FLASH_ATTN = "flash-attn==2.8.3"


def program(name: str) -> str:
    """What to type for a program of this environment.

    Args:
        name (str): ``python``, or one that a package installs, such as ``hf``.

    Returns:
        str: the name alone if ``PATH`` finds it in this environment, otherwise its path, relative if it is below the
        current folder.
    """
    here = Path(sys.executable)
    wanted = here if name == "python" else here.parent / name
    if not wanted.exists():
        return name
    found = shutil.which(name)
    if found is not None and Path(found).absolute().parent == here.parent and os.path.samefile(found, wanted):
        return name
    return shlex.quote(str(wanted.relative_to(Path.cwd()) if wanted.is_relative_to(Path.cwd()) else wanted))


def python() -> str:
    """What to type for the current Python."""
    return program("python")


def pip_install() -> str:
    """What to type before the packages to install here; environments made by uv have no pip."""
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {python()}"
    return f"{python()} -m pip install"


def made_for(environ: Mapping[str, str] = os.environ, prefix: str | None = None) -> str | None:
    """The set that ``scripts/setup.sh`` made this environment for; None for one that it only checks.

    Args:
        environ (Mapping[str, str]): may hold ``SAW_VENV``.
        prefix (str | None): the environment's folder; None for that of this Python.
    """
    if environ.get("SAW_VENV") == "active":
        return None
    try:
        words = (Path(prefix or sys.prefix) / MARK).read_text().split()
    except OSError:
        return None
    return words[0] if words else None


def set_up(wanted: str) -> str:
    """How to get the packages of a set, from an environment that ``scripts/setup.sh`` made."""
    command = f"bash scripts/setup.sh --set {wanted}"
    if made_for() != wanted:
        return f"{command} makes the environment of the set {wanted}; then put SAW_SET={wanted} before the command"
    named = f"SAW_VENV={shlex.quote(sys.prefix)} " if os.environ.get("SAW_VENV") else ""
    return f"{named}{command}; if that changes nothing, remove {sys.prefix} first"


def flash_attn() -> str:
    """The command that installs flash-attn; never one for an environment without CUDA."""
    if made_for() == "gpu":
        return "bash scripts/setup.sh --flash-attn"
    if made_for() is not None:
        return "bash scripts/setup.sh --set gpu --flash-attn on the GPU node (this environment is for CPUs)"
    if is_for_cpus():
        return f"{FLASH_ATTN} on the GPU node (this environment is for CPUs: docs/attention.md)"
    return f"{pip_install()} --no-build-isolation {FLASH_ATTN} (needs nvcc of torch's CUDA: docs/attention.md)"


def is_for_cpus() -> bool:
    """Whether the installed torch is a build for CPUs."""
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def cuda() -> str:
    """How to get a torch that is built for CUDA."""
    if made_for() is not None:
        return set_up("gpu")
    return "install CUDA builds of torch and vLLM that suit the driver into this environment (docs/installation.md)"
