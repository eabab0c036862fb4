"""The shape of the house: which room may import which, and what a name may stand for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AREAS = {
    "tallystick": ROOT / "src",
    "tallystick_serving": ROOT / "serving",
    "tallystick_training": ROOT / "training",
    "tallystick_monitoring": ROOT / "monitoring",
    "tallystick_simulation": ROOT / "simulation",
}
ROOMS = (
    "cli",
    "records",
    "retrieval",
    "materialization",
    "prediction_log",
    "model_bundle",
    "offline_store",
    "online_store",
    "point_in_time",
    "storage",
    "definitions",
)
"""The rooms of ``tallystick``. Each may import those that stand after it."""

BESIDE_THE_ROOMS = {"__init__", "__main__", "clock", "errors", "settings"}
"""Modules beside the rooms that have one name in every project, or that every room imports."""


def module_of(file: Path) -> str:
    folder = next(folder for folder in AREAS.values() if file.is_relative_to(folder))
    parts = file.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(file): file
    for area, top in AREAS.items()
    for file in sorted((top / area).rglob("*.py"))
}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def imported(module: str) -> frozenset[str]:
    """The modules that a module imports anywhere, those of type checking included."""
    names: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in full}
    return frozenset(names - {module})


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "tallystick" and len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.parametrize("area", AREAS)
def test_areas_import_the_shared_part_and_never_each_other(area):
    allowed = {"tallystick", area} if area != "tallystick_simulation" else set(AREAS)
    for module in MODULES:
        if module.split(".")[0] == area:
            found = {name.split(".")[0] for name in imported(module)} & AREAS.keys()
            assert found <= allowed, module


def test_every_package_of_the_shared_part_is_a_room_in_the_order():
    folder = AREAS["tallystick"] / "tallystick"
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert packages == set(ROOMS)


def test_rooms_import_only_those_that_stand_after_them():
    against = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported(module)
        if (ours := room_of(module)) and (theirs := room_of(name))
        if ROOMS.index(theirs) < ROOMS.index(ours)
    ]
    assert against == []


def test_modules_beside_the_rooms_import_no_room():
    for module in MODULES:
        if module.startswith("tallystick.") and room_of(module) is None:
            rooms = {name for name in imported(module) if room_of(name)}
            assert not rooms or module == "tallystick.__main__", (module, rooms)


def test_no_files_import_each_other_in_a_circle():
    graph = {module: {name for name in imported(module) if name in MODULES} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_each_module_name_stands_once():
    modules = defaultdict(list)
    for module, file in MODULES.items():
        if file.stem not in BESIDE_THE_ROOMS:
            modules[file.stem].append(module)
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}


def test_each_class_name_stands_once():
    modules = defaultdict(list)
    for module in MODULES:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(module)
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "manager", "base", "misc"])
def test_no_module_has_a_name_that_says_nothing(name):
    assert [module for module in MODULES if name in module.split(".")] == []


def test_nothing_outside_the_scenario_knows_what_it_is_about():
    words = re.compile(r"flight|airline|weather|airport|\bcarrier\b|\btail\b", re.IGNORECASE)
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in MODULES.values()
        for line in file.read_text().splitlines()
        if words.search(line.replace("in flight", "").replace("in_flight", ""))
    ]
    assert found == []


def uses(module: str, *, library: str, names: set[str]) -> bool:
    """Whether a module uses a name of a library: ``os.environ``, ``from time import time``."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module == library:
            if names & {alias.name for alias in node.names}:
                return True
        elif isinstance(node, ast.Attribute) and node.attr in names:
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value
            if owner == library or (isinstance(owner, ast.Name) and owner.id == library):
                return True
    return False


def test_only_settings_reads_the_environment():
    names = {"environ", "environb", "getenv"}
    found = [module for module in MODULES if uses(module, library="os", names=names)]
    assert found == ["tallystick.settings"]


def test_only_the_clock_reads_the_wall_clock():
    def reads(module: str) -> bool:
        return (
            uses(module, library="time", names={"time", "time_ns"})
            or uses(module, library="datetime", names={"now", "utcnow", "today"})
            or uses(module, library="date", names={"today"})
        )

    assert [module for module in MODULES if reads(module)] == ["tallystick.clock"]


@pytest.mark.parametrize(
    "module",
    ["tallystick.cli", "tallystick.point_in_time.rule", "tallystick.online_store.online_reader"],
)
def test_light_modules_stay_light(module):
    heavy = {"feast", "pandas", "sklearn", "mlflow", "duckdb", "pyarrow"}
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_public_api_is_flat_and_complete():
    code = "import tallystick; print(*sorted(n for n in dir(tallystick) if n[0] != '_'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import tallystick

    public = {name for name in tallystick.__all__ if not name.startswith("_")}
    assert set(done.stdout.split()) == public
    assert all(hasattr(tallystick, name) for name in tallystick.__all__)
