"""Memory of a training process on a CPU."""

from __future__ import annotations

import ctypes
import os

# Options of mallopt, as in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Keeps memory that is freed for the next step, instead of returning it to the system.

    Each step allocates gradients and activations again. Pages that were returned must be mapped and cleared again when
    they are first written, which costs a CPU 6% of a step and more. Only glibc has these options. Variables of
    the environment that begin with MALLOC_ win.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26)):
        mallopt(option, value)
