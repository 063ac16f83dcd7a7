"""`python -m hookexp`, and the console script `hookexp`.

What is imported here is little, so that a signal in the seconds in which the rest is imported
finds somebody who leaves with one line and the right code.
"""

from __future__ import annotations

import gc
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # In place of a traceback out of the next import.

from hookexp.hidden import hidden_module  # noqa: E402  (what is above comes first)
from hookexp.signals import leave_at_once  # noqa: E402


def main() -> None:
    """The command line; see `hookexp.app`."""
    leave_at_once()
    try:
        from hookexp.app import main as run
    except (ImportError, AttributeError) as error:
        if said := hidden_module(error):
            sys.exit(f"hookexp: {said}")
        raise
    try:
        run()
    finally:
        # Before it ends, Python looks for garbage in all that torch has made: most of a second.
        gc.freeze()


if __name__ == "__main__":
    main()
