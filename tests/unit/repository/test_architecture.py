"""No import goes back up, and there are no circles: docs/architecture.md shows these layers."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Each room, and the rooms that it may import; a room may always import itself.
ROOMS = {
    "saw": {"saw.method"},  # the public names
    "saw.faults": set(),
    "saw.method": set(),
    "saw.rewards": {"saw.faults"},
    "saw.records": set(),
    "saw.machine": set(),
    "saw.verl": {"saw.faults", "saw.method", "saw.rewards", "saw.records", "saw.machine"},
    "saw.trl": {"saw.method", "saw.records"},
    "saw.slime": {"saw.method"},
    "saw.memory": {"saw.machine", "saw.method", "saw.report", "saw.runs", "saw.verl"},
    "saw.runs": {"saw.faults", "saw.verl", "saw.rewards", "saw.records", "saw.machine"},
    "saw.report": {"saw.records"},
    "saw.doctor": {"saw.machine", "saw.memory", "saw.method", "saw.rewards", "saw.runs", "saw.verl"},
    "saw.cli": set(),
    "saw.command": {"saw.faults"},
    "saw.__main__": {"saw.cli"},
    "data_prep": {"saw.rewards", "saw.machine"},
    "recipes": {"data_prep", "saw.machine", "saw.memory", "saw.method", "saw.records", "saw.report", "saw.rewards"}
    | {"saw.runs", "saw.doctor"},
    "benchmarks": {"data_prep", "recipes", "saw", "saw.records", "saw.report", "saw.rewards", "saw.runs", "saw.verl"},
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path
    for top in ("saw", "data_prep", "recipes", "benchmarks")
    for path in (ROOT / top).rglob("*.py")
}


def room_of(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("saw.") else 1])


def imports_of(module: str) -> set[str]:
    """The modules of this repository that a module imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & MODULES.keys()
            if whole - MODULES.keys():
                found.add(node.module)
    return (found & MODULES.keys()) - {module}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_goes_back_up(module):
    room = room_of(module)
    wrong = {name for name in imports_of(module) if room_of(name) not in {room, *ROOMS[room]}}
    assert not wrong, f"{module} imports {wrong}; {room} may import {sorted(ROOMS[room])}"


def test_there_are_no_circles():
    rooms = defaultdict(set)
    for module in MODULES:
        rooms[room_of(module)] |= {room_of(name) for name in imports_of(module)} - {room_of(module)}
    for graph in (rooms, {module: imports_of(module) for module in MODULES}):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(f"a circle: {' -> '.join(error.args[1])}")
