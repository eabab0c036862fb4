"""The command line, ``tally``. Heavy imports happen in the commands: ``--help`` answers at once."""

from tallystick.cli.commands import main

__all__ = ["main"]
