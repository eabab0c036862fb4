"""What is installed: the wheel is built and looked at, and its command is run from it alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "tallystick": "src",
    "tallystick_serving": "serving",
    "tallystick_training": "training",
    "tallystick_monitoring": "monitoring",
    "tallystick_simulation": "simulation",
}
BYTES_MAX = 1_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel. Building it needs nothing but what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def dist_info(wheel, name):
    (path,) = (
        path
        for path in zipfile.ZipFile(wheel).namelist()
        if path.startswith("tallystick-") and path.endswith(f".dist-info/{name}")
    )
    return zipfile.ZipFile(wheel).read(path).decode()


def test_it_holds_the_packages_and_nothing_else(names):
    expected = {
        file.relative_to(ROOT / folder).as_posix()
        for package, folder in PACKAGES.items()
        for file in (ROOT / folder / package).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_it_holds_no_tests_data_or_compiled_files(names):
    folders = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert folders == PACKAGES.keys()
    suffixes = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert suffixes == {".py", ".typed"}


def test_every_package_says_that_it_is_typed(names):
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_it_is_small(wheel):
    assert wheel.stat().st_size < BYTES_MAX


def test_its_metadata_has_the_licence_and_no_address_of_a_registry(wheel):
    metadata = dist_info(wheel, "METADATA").partition("\n\n")[0]
    assert "License-Expression: Apache-2.0" in metadata
    assert "License-File: LICENSE" in metadata
    assert dist_info(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert required
    assert not [line for line in required if "@" in line or "://" in line]


def test_its_command_runs_without_the_source_tree(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    entry = dist_info(wheel, "entry_points.txt").splitlines()[-1]
    module, _, function = entry.partition(" = ")[2].partition(":")
    code = (
        f"import sys, {module} as m; print(m.__file__, file=sys.stderr); m.{function}(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.startswith(str(tmp_path))
    assert "materialize" in done.stdout
