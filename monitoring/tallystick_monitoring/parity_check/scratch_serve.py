"""``tally serve`` for a parity check: it ends with the check, however that ends.

The first argument is the folder of the repo, from which a store of the repo's own may be imported.
The others are those of ``tally``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from tallystick.cli.commands import main


def _end_with_check() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.path.append(sys.argv.pop(1))
    threading.Thread(target=_end_with_check, daemon=True).start()
    main()
