"""The ``lastgood`` command."""

from __future__ import annotations

import signal
import sys

from lastgood._lastgood import main as _main


def main() -> int:
    """Runs the command with this process's arguments, and gives its exit code."""
    # Ctrl-C and a closed pipe end this command as they end every other: the command itself says what must be
    # cleaned up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return _main([sys.executable, "-m", "lastgood"], sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
