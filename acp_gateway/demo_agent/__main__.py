"""Starts the demo agent on stdin and stdout."""

from __future__ import annotations

import os

from acp_gateway.demo_agent.agent import serve

if __name__ == "__main__":
    # Daemon threads may sit in a blocked write to a client that is gone: no waiting for them.
    os._exit(serve())
