"""``python -m tallystick`` is ``tally``."""

from tallystick.cli.commands import main

if __name__ == "__main__":
    main(prog_name="tally")
