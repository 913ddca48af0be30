"""What the user typed."""

from __future__ import annotations

import shlex
import sys


def typed(command: str) -> str | None:
    """The line that asked for this command, as it was typed; None when it was called from Python."""
    return shlex.join(["visrep", *sys.argv[1:]]) if sys.argv[1:2] == [command] else None
