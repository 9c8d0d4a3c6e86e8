"""Import this before the transports in a test that imports them.

jsonrpcserver reads its schema in a way that some Pythons call old.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import acp_gateway.runtime.rpc  # noqa: F401
