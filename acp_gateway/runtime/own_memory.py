"""Take the daemon's secrets out of the memory that other processes of the same user may read.

A child runs as the user who started the daemon, and ``/proc/PID/environ`` (``ps -E`` elsewhere)
shows what a process was started with for as long as it lives, whatever became of it since. Here the
values are overwritten in place; `os.environ` keeps its copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

OWN_SECRETS: Final = ("ACP_GATEWAY_TOKEN", "QWEN_SERVER_TOKEN", "QWEN_DAEMON_TOKEN")


def wipe(names: Iterable[str] = OWN_SECRETS) -> None:
    """Overwrite the values of these variables. To be called before there are threads."""
    present = [name for name in names if os.environ.get(name)]
    if not present:
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    libc.getenv.argtypes = [ctypes.c_char_p]
    for name in present:
        address = libc.getenv(name.encode())
        if address:
            ctypes.memset(address, ord("x"), len(ctypes.string_at(address)))
