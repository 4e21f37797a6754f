"""Memory that this process freed goes back to the system.

Training leaves hundreds of megabytes of freed but kept pages behind; what comes next would stand on top of them.
"""

import ctypes
import sys


def give_back() -> None:
    """Let the C library return free pages (glibc; elsewhere nothing happens)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
