"""Checks whether an environment that setup.sh did not make has the packages that the plug-in needs.

``python -P saw/machine/requirements.py [EXTRA ...]`` runs it alone: it needs only the standard library and
``packaging``, and works even if nothing of this project can be imported. The requirements come from ``pyproject.toml``,
or in an installed package from its metadata, and from the metadata of the installed verl and vLLM.
"""

from __future__ import annotations

import re
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
#: This package's name for pip.
DISTRIBUTION = "saw-rl"
#: For a training and every recipe: torch and vLLM are extras, so that pip replaces neither.
EVERYTHING = ("torch", "vllm", "all")


@dataclass(frozen=True)
class Problem:
    """A package that is missing or has the wrong version.

    Attributes:
        name (str): of the package.
        found (str | None): its version; None if it is missing.
        needed (str): the requirement as pip takes it, as in ``ray[default]>=2.41``.
        by (str): what needs it.
    """

    name: str
    found: str | None
    needed: str
    by: str

    def __str__(self) -> str:
        found = f"{self.found} is installed" if self.found else "not installed"
        return f"{self.name}: {found}, {self.by} needs {self.needed}"


def problems(
    extras: Sequence[str] = EVERYTHING,
    version: Callable[[str], str | None] | None = None,
    requires: Callable[[str], Sequence[str]] | None = None,
) -> list[Problem]:
    """What is missing or has the wrong version, once per package and dependent.

    Args:
        extras (Sequence[str]): of this package.
        version (Callable[[str], str | None] | None): gives the installed version of a package, None if it is missing;
            by default in this interpreter.
        requires (Callable[[str], Sequence[str]] | None): gives an installed package's requirements; default likewise.

    Raises:
        ValueError: if there is no such extra.
    """
    version = version or _version
    requires = requires or _requires
    needs = [(DISTRIBUTION, requirement) for requirement in declared(extras)]
    for name in ("verl", "vllm"):
        found = version(name)
        # vLLM is compiled for one version of torch; its other requirements do not concern us.
        of_interest = [need for need in _for_us(requires(name)) if name == "verl" or need.name == "torch"]
        needs += [(f"{name} {found}", need) for need in of_interest]
    wrong = [
        Problem(need.name, version(need.name), _wish(need), by)
        for by, need in needs
        if not _fits(version(need.name), need)
    ]
    if version("verl") is not None and (beside := trl_problem()):
        wrong.append(beside)
    if version(DISTRIBUTION) is None:
        wrong.insert(0, Problem(DISTRIBUTION, None, DISTRIBUTION, "verl, to find the plug-in,"))
    return list(dict.fromkeys(wrong))


def trl_problem() -> Problem | None:
    """The installed TRL if verl cannot load a model with it; None if there is none, or a suitable one."""
    if find_spec("trl") is None:
        return None
    try:  # as verl does, in verl.models.transformers.monkey_patch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from trl.experimental.ppo import AutoModelForCausalLMWithValueHead
            except ImportError:
                from trl import AutoModelForCausalLMWithValueHead  # noqa: F401
    except Exception as error:  # noqa: BLE001  an import may raise anything; the problem shows it
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        needed = f"one with AutoModelForCausalLMWithValueHead, or none ({why})"
        return Problem("trl", _version("trl") or "TRL", needed, f"verl {_version('verl')}")
    return None


def declared(extras: Sequence[str]) -> list[Requirement]:
    """This package's dependencies, with those of extras, followed recursively."""
    own, known = _of_checkout() if (REPOSITORY / "pyproject.toml").is_file() else _of_installed()
    found = list(_for_us(own))
    waiting = list(extras)
    seen: set[str] = set()
    while waiting:
        extra = waiting.pop(0)
        if extra not in known:
            raise ValueError(f"extra is {extra!r}; expected one of {', '.join(known)}")
        if extra in seen:
            continue
        seen.add(extra)
        for need in _for_us(known[extra]):
            if canonicalize_name(need.name) == DISTRIBUTION:
                waiting += sorted(need.extras)
            else:
                found.append(need)
    return found


def _of_checkout() -> tuple[list[str], dict[str, list[str]]]:
    """The dependencies, and those of each extra, in ``pyproject.toml``."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return project["dependencies"], project["optional-dependencies"]


def _of_installed() -> tuple[list[str], dict[str, list[str]]]:
    """The same from the metadata of the installed package, where a requirement of an extra has a marker for it."""
    extras: dict[str, list[str]] = {name: [] for name in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra", [])}
    own = []
    for line in metadata.requires(DISTRIBUTION) or []:
        need = Requirement(line)
        extra = re.search(r"""extra == ['"]([^'"]+)['"]""", line)
        if extra is None:
            own.append(line)
        elif need.marker is None or need.marker.evaluate({"extra": extra[1]}):
            need.marker = None
            extras[extra[1]].append(str(need))
    return own, extras


def report(wrong: Sequence[Problem], python: str = sys.executable, has_pip: bool = True) -> str:
    """The problems, and how to fix them.

    Args:
        wrong (Sequence[Problem]): the problems.
        python (str): of the environment that has them.
        has_pip (bool): False for an environment made by uv.
    """
    lines = [f"{python} does not meet {len(wrong)} requirements; nothing was installed:"]
    lines += [f"  {problem}" for problem in wrong]
    lines += repairs(wrong, f"{python} -m pip install" if has_pip else f"uv pip install --python {python}")
    return "\n".join(lines)


def repairs(wrong: Sequence[Problem], install: str) -> list[str]:
    """The commands that fix problems; torch and vLLM depend on the driver, so the user chooses them.

    Args:
        wrong (Sequence[Problem]): the problems.
        install (str): the command before the packages, as in ``python -m pip install``.
    """
    chosen = {DISTRIBUTION, "torch", "vllm", "trl"}
    specs = sorted({f"'{problem.needed}'" for problem in wrong if problem.name not in chosen})
    lines = [f"install them: {install} {' '.join(specs)}"] if specs else []
    if _has(wrong, DISTRIBUTION):
        lines.append(f"install this repository: {install} --no-deps -e {REPOSITORY}")
    if _has(wrong, "torch") or _has(wrong, "vllm"):
        lines.append("install a torch and vLLM that match each other and the driver (docs/installation.md)")
    if _has(wrong, "trl"):
        uninstall = install.replace(" pip install", " pip uninstall", 1)
        lines.append(f"remove TRL: {uninstall} trl (SAW in TRL has an environment of its own: docs/trl.md)")
    return lines


def main() -> int:
    """Print what is wrong; 1 if anything is, otherwise 0."""
    wrong = problems(sys.argv[1:] or EVERYTHING)
    if wrong:
        print(report(wrong, has_pip=find_spec("pip") is not None), file=sys.stderr)  # noqa: T201
    return int(bool(wrong))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requires(name: str) -> Sequence[str]:
    try:
        return metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return ()


def _for_us(lines: Sequence[str]) -> Iterator[Requirement]:
    """Requirements for this interpreter and platform, without those of extras."""
    for line in lines:
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield need


def _fits(found: str | None, need: Requirement) -> bool:
    return found is not None and need.specifier.contains(found, prereleases=True)


def _wish(need: Requirement) -> str:
    extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
    return f"{need.name}{extras}{need.specifier}"


def _has(wrong: Sequence[Problem], name: str) -> bool:
    return any(problem.name == name for problem in wrong)


if __name__ == "__main__":
    sys.exit(main())
