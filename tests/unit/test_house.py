"""The shape of the house: who may import whom, and how large a room may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AREAS = {
    "tallystick": ROOT / "src" / "tallystick",
    "tallystick_serving": ROOT / "serving" / "tallystick_serving",
    "tallystick_training": ROOT / "training" / "tallystick_training",
    "tallystick_monitoring": ROOT / "monitoring" / "tallystick_monitoring",
    "tallystick_simulation": ROOT / "simulation" / "tallystick_simulation",
}
FILES = [file for folder in AREAS.values() for file in sorted(folder.rglob("*.py"))]


def imported_areas(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & AREAS.keys()


@pytest.mark.parametrize("area", AREAS)
def test_areas_import_the_shared_part_and_never_each_other(area):
    allowed = {"tallystick", area} if area != "tallystick_simulation" else set(AREAS)
    for file in AREAS[area].rglob("*.py"):
        assert imported_areas(file) <= allowed, file


def test_nothing_outside_the_scenario_knows_what_it_is_about():
    words = re.compile(r"flight|airline|weather|airport|\bcarrier\b|\btail\b", re.IGNORECASE)
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in FILES
        for line in file.read_text().splitlines()
        if words.search(line.replace("in flight", "").replace("in_flight", ""))
    ]
    assert found == []


def test_only_settings_reads_the_environment():
    environment = re.compile(r"environ|getenv")
    found = [file.name for file in FILES if environment.search(file.read_text())]
    assert found == ["settings.py"]


def test_only_the_clock_reads_the_wall_clock():
    wall = re.compile(r"datetime\.now|time\.time\(|time_ns\(|utcnow|today\(")
    assert [file.name for file in FILES if wall.search(file.read_text())] == ["clock.py"]


def test_files_are_a_sitting_at_most():
    # By path: rooms have files of one name.
    lengths = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in FILES}
    assert len(lengths) == len(FILES)
    assert {file: length for file, length in lengths.items() if length > 500} == {}


@pytest.mark.parametrize(
    "module",
    [
        "tallystick.cli.commands",
        "tallystick.point_in_time.rule",
        "tallystick.online_store.online_reader",
    ],
)
def test_light_modules_stay_light(module):
    heavy = {"feast", "pandas", "sklearn", "mlflow", "duckdb", "pyarrow"}
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_public_names_are_importable():
    import tallystick

    assert all(hasattr(tallystick, name) for name in tallystick.__all__)
