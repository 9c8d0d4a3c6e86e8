"""The watchdog process: ends the process groups it was told of when its standard input closes.

Started by `acp_gateway.runtime.watchdog` in a session of its own. Input lines: ``+PGID`` and
``-PGID``. It holds nothing but this set, so that even ``kill -9`` of the daemon leaves no agent.
"""

import contextlib
import os
import signal
import sys
import time

GRACE = 0.7


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        sign, text = line[:1], line[1:].strip()
        if text.isdigit() and int(text) > 1:
            (groups.add if sign == "+" else groups.discard)(int(text))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in list(groups):
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                groups.discard(group)
            except OSError:
                pass
        deadline = time.monotonic() + GRACE
        while groups and number == signal.SIGTERM and time.monotonic() < deadline:
            time.sleep(0.02)
            for group in list(groups):
                with contextlib.suppress(PermissionError):
                    try:
                        os.killpg(group, 0)
                    except ProcessLookupError:
                        groups.discard(group)


if __name__ == "__main__":
    main()
