"""Memory of a training process on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

# Options of mallopt, as in glibc's malloc.h, and of madvise, as in Linux's mman.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2**21  # bytes
_MOST = 2**32  # bytes of huge pages: what training an encoder of usual size takes


def keep_freed_memory() -> None:
    """Keeps memory that is freed for the next step, instead of returning it to the system, and takes it in huge pages.

    Each step allocates gradients and activations again. Pages that were returned must be mapped and cleared again when
    they are first written, which costs a CPU 6% of a step and more; small pages must be looked up more often, 10%. Only
    glibc has these options. Variables of the environment that begin with MALLOC_ win, and GLIBC_TUNABLES of malloc.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**26)):
        mallopt(option, value)
    _advise_huge_pages(library)


def _advise_huge_pages(library: ctypes.CDLL) -> None:
    """Extends the heap by addresses, not by memory, and asks for huge pages where it will be used. This is advice.

    In that part of the heap, calloc clears what it returns, instead of relying on new pages: large arrays of zeros take
    their memory at once.
    """
    with contextlib.suppress(OSError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":  # there, addresses count as memory
            return
    limits = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if "malloc" in os.environ.get("LD_PRELOAD", "") or any(limit != resource.RLIM_INFINITY for limit in limits):
        return  # another allocator, or addresses are limited
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = min(_MOST, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    if (address := library.malloc(size)) is None:  # a limit of addresses
        return
    first = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    library.madvise(first, (address + size - first) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
    library.free(address)  # the heap keeps its end
