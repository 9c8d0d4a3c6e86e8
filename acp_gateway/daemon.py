"""The daemon: constructs every part, starts them in order, and stops them in order."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog
import trio

from acp_gateway import __version__
from acp_gateway.config import LoadedSettings, PortError, Settings, is_loopback
from acp_gateway.protocol.errors import GatewayError
from acp_gateway.runtime import runtime_file
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.memory import give_back
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.runtime.telemetry import configure_logging
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.writer_lock import WriterLocks
from acp_gateway.transports.guards import Policy, token_digest
from acp_gateway.transports.sockets import open_sockets, tls_context

if TYPE_CHECKING:
    from acp_gateway.transports.hub import Hub
    from acp_gateway.transports.listener import Listener

log = structlog.get_logger("acp_gateway")

COLLECTION: Final = 30.0
"""Seconds between two collections of cyclic garbage."""
_FOR_WEBSOCKETS: Final = (
    "acp_gateway.transports.acp_http",
    "acp_gateway.transports.listener",
    "acp_gateway.transports.operations.over_rpc",
)
_FOR_HTTP: Final = ("acp_gateway.transports.http_server", "acp_gateway.transports.http_app")
FLUSH: Final = 1.0
"""Time that writers get for the last messages."""


async def _collect_cycles() -> None:
    """What clients and agents leave behind when they end is in cycles, some of it with megabytes.

    The collector counts allocations to know when to look, and a stream of updates makes none that
    it counts. What streams leave free lies between what lives on, and would only ever grow.
    """
    while True:
        await trio.sleep(COLLECTION)
        gc.collect()
        give_back()


@attrs.frozen
class Address:
    url: str
    ws_url: str


def run(loaded: LoadedSettings, profiles: Mapping[str, AgentProfile]) -> int:
    """Serve until stopped; the exit status. Raises `PortError` when the port cannot be had."""
    terminal = sys.stderr.isatty()
    json_lines = loaded.settings.log_format == "json" or (
        loaded.settings.log_format == "auto" and not terminal
    )
    configure_logging(json_lines)
    return trio.run(Daemon(loaded.settings, profiles, json_lines=json_lines).main)


class Daemon:
    def __init__(
        self, settings: Settings, profiles: Mapping[str, AgentProfile], *, json_lines: bool
    ) -> None:
        self.settings = settings
        self.profiles = profiles
        self._json_lines = json_lines
        self._began = time.monotonic()
        self._workspace = Workspace(settings.workspace or (Path.cwd(),))
        self._watchdog = Watchdog()
        environ = dict(os.environ)
        self._pool = AgentPool(profiles, settings, self._watchdog, self._workspace.default, environ)
        self._manager = SessionManager(
            settings, self._pool, self._workspace, profiles, WriterLocks(_state_dir() / "locks")
        )
        self._announced = trio.Event()
        self._stopping = trio.Event()

    async def main(self) -> int:
        settings = self.settings
        tls = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            tls = tls_context(settings.tls_cert, settings.tls_key)
        try:
            sockets = open_sockets(settings.host, settings.port)
        except PortError as exc:
            raise self._named_owner(exc) from None
        port = sockets[0].getsockname()[1]
        policy = Policy(
            port=port,
            loopback=is_loopback(settings.host),
            bound_host=settings.host.lower(),
            token_digest=token_digest(settings.token) if settings.token else None,
            allow_origin=frozenset(each.lower().rstrip("/") for each in settings.allow_origin),
        )
        address = self._address(port, secure=tls is not None)
        self._watchdog.start()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._signals, nursery.cancel_scope)
                await nursery.start(self._pool.run)
                await nursery.start(self._manager.run)
                nursery.start_soon(self._first_agent)
                hub, listener = await self._open_doors(nursery, sockets, policy, tls)
                self._announce(address)
                self._announced.set()
                runtime_file.write(self._runtime_info(address))
                if settings.open:
                    import webbrowser

                    # Behind the # it is sent to nobody.
                    token = "" if settings.token is None else f"#token={settings.token}"
                    await trio.to_thread.run_sync(webbrowser.open, f"{address.url}/{token}")
                await self._stopping.wait()
                await self._stop(hub, listener)
                nursery.cancel_scope.cancel()
        finally:
            runtime_file.remove()
            self._watchdog.close()
        return 0

    # ---- start ----------------------------------------------------------------------------------

    async def _open_doors(
        self,
        nursery: trio.Nursery,
        sockets: list[socket.socket],
        policy: Policy,
        tls: ssl.SSLContext | None,
    ) -> tuple[Hub, Listener]:
        """Import what serves clients, WebSocket first, while the first agent starts.

        The port is open already; who comes early waits for the part that it needs.
        """
        await trio.to_thread.run_sync(_import, *_FOR_WEBSOCKETS)
        from acp_gateway.transports.acp_http import AcpHttp
        from acp_gateway.transports.hub import Hub
        from acp_gateway.transports.listener import Listener
        from acp_gateway.transports.operations.over_rpc import serve_over_rpc

        hub = Hub(self.settings, self._manager, policy)
        serve_over_rpc(hub)
        http = AcpHttp(hub)
        listener = Listener(sockets, hub, self.settings, tls)
        await nursery.start(http.run)
        await nursery.start(listener.run)
        await trio.to_thread.run_sync(_import, *_FOR_HTTP)
        from acp_gateway.transports.http_app import GatewayAsgi

        listener.serve_http(GatewayAsgi(hub, http))
        # What is here now stays: no collection has to look at it again.
        gc.freeze()
        nursery.start_soon(_collect_cycles)
        return hub, listener

    def _address(self, port: int, *, secure: bool) -> Address:
        host = self.settings.host
        if host in ("0.0.0.0", "::", ""):
            host = "127.0.0.1" if host != "::" else "::1"
        if ":" in host:
            host = f"[{host}]"
        scheme = "s" if secure else ""
        return Address(f"http{scheme}://{host}:{port}", f"ws{scheme}://{host}:{port}/acp")

    def _named_owner(self, exc: PortError) -> PortError:
        owner = runtime_file.owner_of_port(self.settings.port)
        if owner is None:
            return exc
        return PortError(
            f"Port {self.settings.port} is in use by another acp-gateway (process {owner.pid}, "
            f"serving {', '.join(owner.workspace)})",
            remedy=f"connect to {owner.ws_url}, stop it with `acp-gateway stop {owner.pid}`, "
            "or use another --port",
        )

    def _auth(self) -> str:
        settings = self.settings
        if settings.token:
            return "a bearer token is required"
        if is_loopback(settings.host):
            return "none: open to every program on this machine"
        return "none"

    def _runtime_info(self, address: Address) -> runtime_file.RuntimeInfo:
        return runtime_file.RuntimeInfo.of_this_process(
            url=address.url,
            ws_url=address.ws_url,
            workspace=self._workspace.roots,
            agents=self.profiles,
            auth=self._auth(),
            token=self.settings.token,
        )

    def _announce(self, address: Address) -> None:
        took = time.monotonic() - self._began
        note = getattr(self.profiles, "note", None)
        roots = [str(root) for root in self._workspace.roots]
        if self._json_lines:
            line: dict[str, Any] = {
                "event": "ready",
                "version": __version__,
                "pid": os.getpid(),
                "url": address.url,
                "ws_url": address.ws_url,
                "http_url": address.url + "/acp",
                "workspace": roots,
                "agents": list(self.profiles),
                "auth": self._auth(),
                "startup_ms": round(took * 1000),
            }
            if note:
                line["note"] = note
            print(json.dumps(line), file=sys.stderr, flush=True)
            return
        rows = [
            ("WebSocket", address.ws_url),
            ("HTTP", address.url + "/acp"),
            ("Web, REST", address.url + "/"),
            ("Workspace", ", ".join(roots)),
            ("Agent", ", ".join(f"{name} (starting)" for name in list(self.profiles)[:1])),
            ("Auth", self._auth()),
            ("Stop", "Ctrl-C; a second Ctrl-C does not wait for running turns"),
        ]
        others = list(self.profiles)[1:]
        if others:
            rows.insert(
                5, ("Also", ", ".join(f"{address.ws_url[:-4]}/agents/{n}/acp" for n in others))
            )
        print(f"ACP Gateway {__version__} is listening ({_seconds(took)})", file=sys.stderr)
        for name, text in rows:
            print(f"  {name:<10} {text}", file=sys.stderr)
        if note:
            print(f"  {'Note':<10} {note}", file=sys.stderr)
        sys.stderr.flush()

    async def _first_agent(self) -> None:
        """Start the default agent ahead of the first client, and say how that went."""
        profile = next(iter(self.profiles.values()))
        began = trio.current_time()
        try:
            async with self._pool.borrow(profile) as host:
                info = host.initialize_result.get("agentInfo")
                took = trio.current_time() - began
        except GatewayError as exc:
            await self._announced.wait()
            if self._json_lines:
                log.error("agent_failed", agent=profile.name, error=exc.message, remedy=exc.remedy)
            else:
                print(f"  {'Agent':<10} {profile.name} failed: {exc.message}", file=sys.stderr)
                if exc.remedy:
                    print(f"  {'':<10} {exc.remedy}", file=sys.stderr, flush=True)
            return
        await self._announced.wait()
        name, version = profile.name, None
        if isinstance(info, dict):
            version = info.get("version")
            name = str(info.get("title") or info.get("name") or name)
        if self._json_lines:
            log.info("agent_ready", agent=profile.name, name=name, version=version)
        else:
            text = f"{name} {version or '(no version told)'} is ready ({_seconds(took)})"
            print(f"  {'Agent':<10} {text}", file=sys.stderr, flush=True)

    # ---- stop -----------------------------------------------------------------------------------

    async def _signals(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if self._stopping.is_set():
                    log.warning("stopping_now", signal=signal.Signals(number).name)
                    scope.cancel()
                    return
                log.info(
                    "stopping",
                    signal=signal.Signals(number).name,
                    running=sum(
                        session.queue.running is not None
                        for session in self._manager.sessions.values()
                    ),
                    grace=self.settings.shutdown_grace,
                )
                self._stopping.set()

    async def _stop(self, hub: Hub, listener: Listener) -> None:
        """The ladder: refuse new work, end the turns, tell the clients, stop the agents.

        What has not ended within the grace is killed when the nursery is cancelled.
        """
        grace = self.settings.shutdown_grace
        self._manager.draining = True
        with trio.move_on_after(grace):
            await listener.drain()
            await self._manager.close_all("daemon_shutdown", grace / 2)
            # The writers have been woken; what they hold goes out with the close.
            hub.kick_all(1001, "The gateway is shutting down")
            with trio.move_on_after(FLUSH):
                await hub.empty()
            await self._pool.close()


def _import(*modules: str) -> None:
    for name in modules:
        importlib.import_module(name)


def _seconds(took: float) -> str:
    return f"{took:.1f} s" if took >= 1 else f"{took * 1000:.0f} ms"


def _state_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("acp-gateway", appauthor=False))
