"""The ``acp-gateway`` command. Exit codes: 0 done, 1 a failure or a bug, 2 usage, 3 configuration,
4 port, 5 agent, 130 interrupted.

Importing this package imports click and little else; each command imports what it needs when it
runs, so that ``--help``, completion and ``status`` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status."""
    from acp_gateway.cli.app import run

    sys.exit(run(sys.argv[1:] if argv is None else argv))
