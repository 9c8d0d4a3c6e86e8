"""``serve``: run the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acp_gateway.cli.base import command, without
from acp_gateway.cli.boot_tls import refuse_bad_tls
from acp_gateway.cli.options import load, resolve, settings_options

if TYPE_CHECKING:
    from acp_gateway.config import LoadedSettings
    from acp_gateway.runtime.agent_profile import Profiles


@command("serve")
@settings_options
def serve(**flags: Any) -> int:
    """Serve agents until Ctrl-C.

    Every flag is also an environment variable (--max-sessions is ACP_GATEWAY_MAX_SESSIONS) and a
    key of the configuration file (max_sessions); `acp-gateway config show` lists them all.
    """

    def read() -> tuple[LoadedSettings, Profiles]:
        loaded = load(flags)
        refuse_bad_tls(loaded.settings, loaded.sources)
        return loaded, resolve(loaded)

    loaded, profiles = read()
    with without("rich"):  # structlog would print tracebacks with it, which this log does not do
        from acp_gateway.daemon import run

    return int(run(loaded, profiles, read))
