"""docs/commands.md lists every command with all of its options, as ``--help`` does.

To write it again:  python tests/unit/test_commands_page.py
"""

from __future__ import annotations

from pathlib import Path

import click

from tallystick.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
HEAD = """\
# Commands

`tally [--repo DIR] COMMAND`. This page is what `--help` prints. A test compares them.
"""


def listed(
    command: click.Command, name: str, parent: click.Context | None
) -> list[tuple[str, str]]:
    """The command's name and help, then those of its subcommands; hidden ones are left out."""
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=96,
        max_content_width=96,
        **command.context_settings,
    )
    found = [(context.command_path, command.get_help(context))]
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            sub = command.get_command(context, each)
            if sub is not None and not sub.hidden:
                found += listed(sub, each, context)
    return found


def page() -> str:
    parts = [f"## {name}\n\n```\n{text}\n```\n" for name, text in listed(main, "tally", None)]
    return "\n".join([HEAD, *parts])


def test_the_page_of_commands_is_what_help_prints():
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
