"""What a process of ours takes its memory from: jemalloc where the machine has it (Debian: libjemalloc2).

| | own allocator | C library's | jemalloc |
| --- | --- | --- | --- |
| the wheel's server, records written | - | 1 | 0.77 |
| a replica, batches | 1 | 1 | 0.84 |

in processor time, measured in turn (`docs/benchmarks.md`). The wheel's server is built for the C library's, where
distributions and images build with jemalloc. Python's own, of fixed pools, is the slower the more objects come and go.
"""

from __future__ import annotations

import ctypes.util
import os
import platform

#: How many free pieces of each size the C library keeps at hand; 16 unless told.
KEPT_AT_HAND = "glibc.malloc.tcache_count=4000"


def jemalloc() -> str:
    """The name it is loaded by, or "": where there is none, or no LD_PRELOAD, which is Linux's."""
    found = ctypes.util.find_library("jemalloc") if platform.system() == "Linux" else None
    return found or ""


def of_server() -> dict[str, str]:
    """What the environment of the wheel's server must say."""
    name = jemalloc()
    return {"LD_PRELOAD": name} if name else {"GLIBC_TUNABLES": KEPT_AT_HAND}


def of_python() -> dict[str, str]:
    """What the environment of a Python process must say. Whoever has chosen an allocator is left alone."""
    name = jemalloc()
    if not name or os.environ.keys() & {"LD_PRELOAD", "PYTHONMALLOC"}:
        return {}
    return {"LD_PRELOAD": name, "PYTHONMALLOC": "malloc"}
