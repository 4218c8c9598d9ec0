"""Whether an environment that somebody else made has what the plug-in needs: names what is missing or does not fit.

``python -P saw/machine/requirements.py [EXTRA ...]`` runs it alone: it needs only the standard library and
``packaging``, and works where nothing of this project can be imported. What is needed is read from ``pyproject.toml``,
and from what the installed verl and vLLM declare.
"""

from __future__ import annotations

import sys
import tomllib
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
    """A package that is missing or of a version that does not fit.

    Attributes:
        name (str): of the package.
        found (str | None): its version; None if it is missing.
        needed (str): what pip would be asked for, as in ``ray[default]>=2.41``.
        by (str): who needs it.
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
    """What is missing or does not fit, each package once for each who needs it.

    Args:
        extras (Sequence[str]): of ``pyproject.toml``.
        version (Callable[[str], str | None] | None): the installed version of a package, None where it is missing; by
            default that of this interpreter.
        requires (Callable[[str], Sequence[str]] | None): what an installed package declares; by default as above.

    Raises:
        ValueError: if an extra is not in ``pyproject.toml``.
    """
    version = version or _version
    requires = requires or _requires
    needs = [(DISTRIBUTION, requirement) for requirement in declared(extras)]
    for name in ("verl", "vllm"):
        found = version(name)
        # vLLM is compiled for one torch; the rest of what it declares is its own affair.
        of_interest = [need for need in _for_us(requires(name)) if name == "verl" or need.name == "torch"]
        needs += [(f"{name} {found}", need) for need in of_interest]
    wrong = [
        Problem(need.name, version(need.name), _wish(need), by)
        for by, need in needs
        if not _fits(version(need.name), need)
    ]
    if version(DISTRIBUTION) is None:
        wrong.insert(0, Problem(DISTRIBUTION, None, DISTRIBUTION, "verl, to find the plug-in,"))
    return list(dict.fromkeys(wrong))


def declared(extras: Sequence[str]) -> list[Requirement]:
    """The dependencies in ``pyproject.toml``, with those of extras and of the extras that these name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    found = list(_for_us(project["dependencies"]))
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


def report(wrong: Sequence[Problem], python: str = sys.executable, has_pip: bool = True) -> str:
    """The problems, and what repairs them.

    Args:
        wrong (Sequence[Problem]): the problems.
        python (str): of the environment that has them.
        has_pip (bool): one that uv made has none.
    """
    lines = [f"{python} lacks {len(wrong)} of what is needed; nothing was installed:"]
    lines += [f"  {problem}" for problem in wrong]
    lines += repairs(wrong, f"{python} -m pip install" if has_pip else f"uv pip install --python {python}")
    return "\n".join(lines)


def repairs(wrong: Sequence[Problem], install: str) -> list[str]:
    """The commands that repair problems; torch and vLLM depend on the driver, so the user chooses them.

    Args:
        wrong (Sequence[Problem]): the problems.
        install (str): the command before the packages, as in ``python -m pip install``.
    """
    chosen = {DISTRIBUTION, "torch", "vllm"}
    specs = sorted({f"'{problem.needed}'" for problem in wrong if problem.name not in chosen})
    lines = [f"install them: {install} {' '.join(specs)}"] if specs else []
    if _has(wrong, DISTRIBUTION):
        lines.append(f"install this repository: {install} --no-deps -e {REPOSITORY}")
    if _has(wrong, "torch") or _has(wrong, "vllm"):
        lines.append("install the torch and vLLM that belong together and suit the driver (docs/installation.md)")
    return lines


def main() -> int:
    """Print what is wrong; 1 if anything is, else 0."""
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
    """Requirements of this interpreter and platform, without those of extras."""
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
