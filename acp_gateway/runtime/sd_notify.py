"""Tells the service manager how the daemon is.

Source: sd_notify(3) and sd_watchdog_enabled(3): one datagram of ``NAME=value`` lines to the Unix
socket that NOTIFY_SOCKET names (``@`` stands for an abstract one); with WATCHDOG_USEC a sign of
life at half that interval, unless WATCHDOG_PID names another process.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

import structlog
import trio

log = structlog.get_logger("acp_gateway.service")

SEND_TIMEOUT: Final = 1.0
_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Without one, every call does nothing. The variables are removed: children must not use it."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        told = {name: environ.pop(name, "") for name in _VARIABLES}
        address = told["NOTIFY_SOCKET"]
        self._socket = _connected(address) if address.startswith(("/", "@")) else None
        self.interval: float | None = None
        """Seconds between two signs of life; None when nobody waits for them."""
        usec, pid = told["WATCHDOG_USEC"], told["WATCHDOG_PID"]
        wanted = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        if wanted and self._socket is not None:
            self.interval = int(usec) / 2e6

    def _send(self, **values: str | int) -> None:
        if self._socket is None:
            return
        lines = [f"{name.upper()}={value}" for name, value in values.items()]
        try:
            self._socket.send("\n".join(lines).encode())
        except OSError as exc:
            log.warning("service_manager_unreachable", error=str(exc))

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is done."""
        self._send(ready=1, status=_one_line(status), mainpid=os.getpid())

    def reloading(self) -> None:
        self._send(reloading=1, monotonic_usec=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)

    def stopping(self, status: str) -> None:
        self._send(stopping=1, status=_one_line(status))

    async def keep_alive(self) -> None:
        """Signs of life while the event loop turns; ends at once when nobody waits for them."""
        while self.interval is not None:
            self._send(watchdog=1)
            await trio.sleep(self.interval)

    def close(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


def _connected(address: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(SEND_TIMEOUT)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError as exc:
        log.warning("service_manager_unreachable", error=str(exc))
        sock.close()
        return None
    return sock


def _one_line(text: str) -> str:
    return " ".join(text.split())
