"""docs/guarantees.md names the test of each sentence; this one looks whether they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_guarantee_names_tests_that_exist():
    lines = (ROOT / "docs" / "guarantees.md").read_text().splitlines()
    rows = [
        line for line in lines if line.startswith("| ") and "---" not in line and line != "| | |"
    ]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            (path,) = (ROOT / "tests").rglob(file)
            assert f"def {test}(" in path.read_text(), f"{file}::{test}"
