"""``tally serve`` for a parity check: it ends with the check, however that ends.

The first argument is the folder of the repo, from which a store of the repo's own may be imported.
The others are those of ``tally``.
"""

from __future__ import annotations

import os
import signal
import sys

from tallystick.cli.commands import main
from tallystick.server_process import when_input_ends

if __name__ == "__main__":
    sys.path.append(sys.argv.pop(1))
    when_input_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    main()
