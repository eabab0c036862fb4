"""CI does what a developer does: it calls targets of make, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
HOSTED = [
    step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step
]
LOCAL = re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)


def test_every_command_is_a_target_of_make():
    for command in (*HOSTED, *LOCAL):
        program, target = command.split()
        assert program == "make"
        assert target in TARGETS


def test_the_hosted_checks_are_the_local_ones_and_more():
    assert LOCAL
    assert set(LOCAL) <= set(HOSTED)


def test_every_target_has_a_line_of_help():
    text = (ROOT / "Makefile").read_text()
    helped = re.findall(r"^([a-z-]+):.*## ", text, flags=re.MULTILINE)
    assert set(helped) == set(TARGETS)
