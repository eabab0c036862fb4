"""The examples of docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AREAS = ("src", "serving", "training", "monitoring", "simulation")
MODULES = [
    ".".join(file.relative_to(ROOT / area).with_suffix("").parts).removesuffix(".__init__")
    for area in AREAS
    for file in sorted((ROOT / area).rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
