"""What SIGHUP asks of the daemon."""

from __future__ import annotations

import os
import signal
from typing import Literal


def hang_up_means() -> Literal["reload", "stop", "nothing"]:
    """What SIGHUP asks of this process.

    With a controlling terminal it says that the terminal has gone, and the daemon ends with it,
    unless it was started to ignore that (nohup). Without one, as under a service manager or in a
    container, it is the operator's order to read the configuration again.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return "reload"
    return "nothing" if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else "stop"
