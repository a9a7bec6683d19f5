"""Which memory allocator our processes use: jemalloc where the machine has it (Debian: libjemalloc2).

Processor time, measured in turn (`docs/benchmarks.md`):

| | its own allocator | the C library's | jemalloc |
| --- | --- | --- | --- |
| the wheel's server, writing records | - | 1 | 0.77 |
| a replica, working on batches | 1 | 1 | 0.84 |

Distributions and images build the server with jemalloc; the wheel's is built for the C library. Python's own allocator
gets slower with the number of objects that come and go.
"""

from __future__ import annotations

import ctypes.util
import os
import platform

#: How many free blocks of each size the C library keeps for a thread; its default is 16.
THREAD_CACHE = "glibc.malloc.tcache_count=4000"


def jemalloc() -> str:
    """Return the name to preload jemalloc by, or "" if it or LD_PRELOAD, which is Linux's, is missing."""
    found = ctypes.util.find_library("jemalloc") if platform.system() == "Linux" else None
    return found or ""


def of_server() -> dict[str, str]:
    """Return what the environment of the wheel's server must have."""
    name = jemalloc()
    return {"LD_PRELOAD": name} if name else {"GLIBC_TUNABLES": THREAD_CACHE}


def of_python() -> dict[str, str]:
    """Return what the environment of a Python process must have. An allocator that was chosen already stays."""
    name = jemalloc()
    if not name or os.environ.keys() & {"LD_PRELOAD", "PYTHONMALLOC"}:
        return {}
    return {"LD_PRELOAD": name, "PYTHONMALLOC": "malloc"}
