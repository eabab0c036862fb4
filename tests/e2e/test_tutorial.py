"""The tutorial and the README's first use, run as they are written."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
EXAMPLE = ROOT / "examples" / "orders"
FILE = re.compile(r"^\*\*(\S+)\*\*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIES = re.compile(
    r"/tmp/\S+?(?=/feature_repo)|[0-9a-f]{8}[0-9a-f-]*|\d[\d,.:T+-]*\d|\d"
    r'|(?<="positive":)(true|false)'
)
"""What is another one at each run: folders, identifiers, times, numbers, and a decision on them."""


@dataclass(frozen=True)
class Step:
    """A command as a page shows it, and the output that stands below it."""

    command: str
    output: list[str]


def steps_of(page: str) -> list[Step]:
    steps: list[Step] = []
    for block in CONSOLE.findall(page):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:], []))
            else:
                steps[-1].output.append(line)
    return steps


def shape(line: str) -> str:
    return VARIES.sub("#", line).strip()


def run(folder: Path, steps: list[Step]) -> list[str]:
    """Run the commands in one shell, as a person would; gives what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = "set -e\n" + "\n".join(
        f"printf '\\n=== {n}\\n'\n{step.command}" for n, step in enumerate(steps)
    )
    script = script.replace("tally serve", f"tally serve --port {port}")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "-c", script.replace("localhost:8000", f"localhost:{port}")],
        cwd=folder,
        env={**environment, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            printed: list[str] = []
            assert shell.stdout is not None
            for line in shell.stdout:
                printed.append(line)
                if line.startswith("Stopped the embedded Redis"):
                    break  # the server still holds the pipe
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
    text = "".join(printed)
    return re.split(r"^=== \d+\n", text, flags=re.MULTILINE)[1:]


def test_the_files_of_the_tutorial_are_those_of_the_example():
    files = dict(FILE.findall(TUTORIAL.read_text()))
    on_disk = {
        str(path.relative_to(EXAMPLE)): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.suffix in {".py", ".yaml"}
    }
    assert files == on_disk


@pytest.mark.timeout(600)
def test_every_block_of_the_tutorial_does_what_the_page_shows(tmp_path):
    page = TUTORIAL.read_text()
    for name, content in FILE.findall(page):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    steps = steps_of(page)
    printed = run(tmp_path, steps)
    assert len(printed) == len(steps), printed[-1]
    for step, text in zip(steps, printed, strict=True):
        actual = iter([shape(line) for line in text.splitlines()])
        missing = [line for line in step.output if shape(line) not in actual]
        assert missing == [], f"$ {step.command}\n{text}"


def test_the_first_use_in_the_readme_is_that_of_the_tutorial():
    tutorial = {step.command: step.output for step in steps_of(TUTORIAL.read_text())}
    readme = steps_of((ROOT / "README.md").read_text())
    first_use = [step for step in readme if step.command in tutorial]
    assert len(first_use) >= 6
    for step in first_use:
        known = [shape(line) for line in tutorial[step.command]]
        assert {shape(line) for line in step.output} <= set(known), step.command
