"""The daemon: constructs every part, starts them in order, and stops them in order."""

from __future__ import annotations

import gc
import importlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from acp_gateway import __version__
from acp_gateway.config import LoadedSettings, PortError, state_directory
from acp_gateway.config_access import public_url
from acp_gateway.protocol.errors import GatewayError
from acp_gateway.runtime import otlp, own_memory, runtime_file
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import Profiles
from acp_gateway.runtime.audit_log import AuditLog
from acp_gateway.runtime.file_watch import FileWatch
from acp_gateway.runtime.hang_up import hang_up_means
from acp_gateway.runtime.keyring import Keyring
from acp_gateway.runtime.live_settings import LiveSettings
from acp_gateway.runtime.memory import give_back
from acp_gateway.runtime.redact import clean, remember_secret
from acp_gateway.runtime.reload import Reloader, Reread
from acp_gateway.runtime.sd_notify import ServiceManager
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.runtime.sign_in_providers import Provider, resolve_providers
from acp_gateway.runtime.telemetry import Logging, start_logging
from acp_gateway.runtime.tracing import tracing
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.writer_lock import WriterLocks
from acp_gateway.token_store import TokenStore, token_digest
from acp_gateway.transports.activation import Passed, take_passed
from acp_gateway.transports.doors import Address, Doors, open_doors
from acp_gateway.transports.guards import Policy
from acp_gateway.transports.unix_socket import UnixSocketInUse

if TYPE_CHECKING:
    from acp_gateway.transports.certificates import Certificates
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
_FOR_HTTP: Final = (
    "acp_gateway.transports.http_server",
    "acp_gateway.transports.http_app",
    "acp_gateway.transports.observed",
)
LAST_SPANS: Final = 3.0
"""Seconds that the last spans of a trace get."""
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


def run(loaded: LoadedSettings, profiles: Profiles, reread: Reread) -> int:
    """Serve until stopped; the exit status. ``reread`` reads the configuration again.

    Raises `PortError` when the port cannot be had.
    """
    # First of all, for what they take out of the environment is for no child.
    service, passed = ServiceManager(), take_passed()
    own_memory.wipe()
    if loaded.settings.token is not None:
        remember_secret(loaded.settings.token)
    warning = otlp.check_extra(loaded.settings)
    logging = start_logging(loaded.settings)
    if warning is not None:
        log.warning("traces_not_sent", reason=warning, remedy="pip install 'acp-gateway[otel]'")
    try:
        return trio.run(Daemon(loaded, profiles, reread, passed, service, logging).main)
    finally:
        logging.close()


def _providers(loaded: LoadedSettings, profiles: Profiles) -> Mapping[str, Provider]:
    """Whom one can sign in at. Raises `ConfigError`."""
    file = loaded.config_file
    return resolve_providers(
        loaded.auth,
        profiles,
        base=Path.cwd() if file is None else file.parent,
        state=state_directory(),
        source=f"file {file}",
        allow_private=loaded.settings.allow_private_auth_base_url,
    )


class Daemon:
    def __init__(
        self,
        loaded: LoadedSettings,
        profiles: Profiles,
        reread: Reread,
        passed: Sequence[Passed],
        service: ServiceManager,
        logging: Logging,
    ) -> None:
        self.settings = settings = loaded.settings
        self.profiles = profiles
        self._live = LiveSettings(settings)
        self._reread = reread
        self._passed = passed
        self._service = service
        self._hang_up = hang_up_means()
        self._logging = logging
        self._json_lines = logging.json_lines
        self._warnings = loaded.warnings
        self._public = public_url(settings.public_url) if settings.public_url else None
        self._began = time.monotonic()
        self._workspace = Workspace(
            settings.workspace or (Path.cwd(),),
            trusted=settings.trust_workspace,
            audit=None if settings.audit_log is None else AuditLog(settings.audit_log),
            raw_paths=settings.audit_raw_paths,
        )
        self._watchdog = Watchdog()
        environ = dict(os.environ)
        self._traces_url = otlp.traces_url(settings) if otlp.is_wanted(settings) else None
        if self._traces_url is not None:
            tracing.expect()
            # Agents whose profile lets them see it send their own spans to the same place.
            if settings.otlp_endpoint is not None:
                environ[otlp.ENDPOINT] = otlp.base_url(settings.otlp_endpoint)
        self._pool = AgentPool(profiles, settings, self._watchdog, self._workspace.default, environ)
        self._manager = SessionManager(
            settings,
            self._pool,
            self._workspace,
            profiles,
            WriterLocks(state_directory() / "locks"),
        )
        self._manager.follow(self._live)
        self._reload_asked = trio.Event()
        self._token: str | None = None
        """The daemon's own; None: nobody needs one."""
        self._providers = _providers(loaded, profiles)
        self._wire = None
        if settings.trace_wire is not None:
            from acp_gateway.runtime.wire_trace import WireTrace, traced_hosts

            self._wire = WireTrace(settings.trace_wire)
            self._pool.make_host = traced_hosts(self._wire)
        self._announced = trio.Event()
        self._stopping = trio.Event()

    async def main(self) -> int:
        settings = self.settings
        certificates = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            from acp_gateway.transports.certificates import Certificates

            certificates = Certificates(settings.tls_cert, settings.tls_key)
        keyring = self._keyring()
        token = settings.token
        if token is None and keyring.demanding:
            # For the commands of this user, which find it in the runtime file.
            token = secrets.token_urlsafe(32)
            remember_secret(token)
        self._token = token
        try:
            doors = open_doors(settings, self._passed, asks_for_token=token is not None)
        except PortError as exc:
            raise self._named_owner(exc) from None
        policy = Policy(
            port=doors.port,
            more_ports=doors.ports[1:],
            loopback=doors.loopback,
            bound_host=doors.host.lower(),
            token_digest=None if token is None else token_digest(token),
            keyring=keyring,
            allow_origin=frozenset(each.lower().rstrip("/") for each in settings.allow_origin),
            public=self._public,
        )
        address = doors.address(secure=certificates is not None)
        try:
            self._watchdog.start()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._signals, nursery.cancel_scope)
                await nursery.start(keyring.run)
                if self._traces_url is not None:
                    nursery.start_soon(self._send_traces, self._traces_url)
                await nursery.start(self._pool.run)
                await nursery.start(self._manager.run)
                if settings.watch_files:
                    nursery.start_soon(FileWatch(self._workspace, self._manager.feed).run)
                nursery.start_soon(self._first_agent)
                nursery.start_soon(self._service.keep_alive)
                hub, listener = await self._open_doors(nursery, doors, policy, certificates)
                # Who is told that it listens may look for it at once.
                runtime_file.write(self._runtime_info(address, doors))
                self._announce(address, doors)
                self._announced.set()
                self._service.ready(f"Listening on {address.url}")
                if settings.open:
                    from acp_gateway.runtime.open_page import open_page

                    nursery.start_soon(open_page, f"{self._links(address)[0]}/", token)
                await self._stopping.wait()
                self._service.stopping("Ending turns and agents")
                await self._stop(hub, listener)
                nursery.cancel_scope.cancel()
        finally:
            log.info("stopped", file_only=True)
            runtime_file.remove()
            doors.remove()
            self._service.close()
            self._watchdog.close()
            if self._wire is not None:
                self._wire.close()
        return 0

    # ---- start ----------------------------------------------------------------------------------

    def _keyring(self) -> Keyring:
        """Raises `ConfigError`."""
        settings = self.settings
        if settings.token_file is not None and settings.token_file.stat().st_mode & 0o077:
            log.warning(
                "token_file_is_not_private",
                path=str(settings.token_file),
                remedy=f"other users may read it: chmod 600 {settings.token_file}",
            )
        issuer = None
        if settings.jwt_jwks is not None:
            from acp_gateway.transports.jwks import issuer_of

            issuer = issuer_of(settings)
        return Keyring(TokenStore(settings.tokens_file), issuer)

    async def _open_doors(
        self,
        nursery: trio.Nursery,
        doors: Doors,
        policy: Policy,
        certificates: Certificates | None,
    ) -> tuple[Hub, Listener]:
        """Import what serves clients, WebSocket first, while the first agent starts.

        The port is open already; who comes early waits for the part that it needs.
        """
        await trio.to_thread.run_sync(_import, *_FOR_WEBSOCKETS)
        from acp_gateway.runtime.device_flow import SignIns
        from acp_gateway.transports.acp_http import AcpHttp
        from acp_gateway.transports.hub import Hub
        from acp_gateway.transports.listener import Listener
        from acp_gateway.transports.oauth_client import OAuthClient
        from acp_gateway.transports.operations.over_rpc import serve_over_rpc

        sign_ins = SignIns(
            self._providers, OAuthClient(), self._manager.tell_everywhere, self._signed_in
        )
        await nursery.start(sign_ins.run)
        hub = Hub(self.settings, self._manager, policy, sign_ins)
        hub.wire = self._wire
        hub.state_dir = state_directory()
        hub.log_health = self._logging.health
        hub.follow(self._live)
        hub.certificates = certificates
        hub.reloader = self._make_reloader(hub, certificates)
        nursery.start_soon(self._reload_when_asked, hub.reloader)
        serve_over_rpc(hub)
        http = AcpHttp(hub)
        listener = Listener(doors.sockets, hub, self.settings, certificates)
        await nursery.start(http.run)
        await nursery.start(listener.run)
        await trio.to_thread.run_sync(_import, *_FOR_HTTP)
        from acp_gateway.transports.http_app import GatewayAsgi
        from acp_gateway.transports.observed import Observed

        asgi = GatewayAsgi(hub, http)
        observed: Any = Observed(asgi, hub.access, hub.traffic, asgi.route_of)
        if self._wire is not None:
            from acp_gateway.transports.wire_tap import TracedHttp

            observed = TracedHttp(observed, self._wire)
        listener.serve_http(observed)
        # What is here now stays: no collection has to look at it again.
        gc.freeze()
        nursery.start_soon(_collect_cycles)
        nursery.start_soon(hub.lag.run)
        nursery.start_soon(hub.access.run)
        return hub, listener

    def _signed_in(self, provider: Provider) -> None:
        """New credentials: only children that start from now on know them."""
        for name, profile in self.profiles.items():
            if provider.agents is None or name in provider.agents:
                self._pool.renew(profile)

    def _make_reloader(self, hub: Hub, certificates: Certificates | None) -> Reloader:
        def agents_changed() -> None:
            self._pool.profiles_changed()
            hub.agents_changed()

        return Reloader(
            self._live,
            self.profiles,
            self._manager,
            self._reread,
            {} if certificates is None else {"tls_cert": certificates.prepare},
            agents_changed=agents_changed,
            began=self._service.reloading,
            ended=lambda: self._service.ready("Listening"),
        )

    def _named_owner(self, exc: PortError) -> PortError:
        if isinstance(exc, UnixSocketInUse):
            for info in runtime_file.list_running():
                if info.unix_socket == str(exc.path) or info.pid == exc.pid:
                    return PortError(
                        f"The Unix socket {exc.path} is in use by another acp-gateway "
                        f"(process {info.pid}, serving {', '.join(info.workspace)})",
                        remedy=f"connect to unix:{exc.path}, stop it with `acp-gateway stop "
                        f"{info.pid}`, or use another --unix-socket",
                    )
            return exc
        owner = runtime_file.owner_of_port(self.settings.port)
        if owner is None:
            return exc
        return PortError(
            f"Port {self.settings.port} is in use by another acp-gateway (process {owner.pid}, "
            f"serving {', '.join(owner.workspace)})",
            remedy=f"connect to {owner.ws_url}, stop it with `acp-gateway stop {owner.pid}`, "
            "or use another --port",
        )

    def _links(self, address: Address) -> tuple[str, str]:
        """URL and WebSocket endpoint to give to people."""
        public = self._public
        return (address.url, address.ws_url) if public is None else (public.url, public.ws_url)

    def _auth(self, doors: Doors) -> str:
        if self._token is not None:
            return "a bearer token is required"
        if not doors.ports:
            return "none: open to every program that may open the socket"
        if doors.loopback:
            return "none: open to every program on this machine"
        return "none"

    def _runtime_info(self, address: Address, doors: Doors) -> runtime_file.RuntimeInfo:
        return runtime_file.RuntimeInfo.of_this_process(
            url=address.url,
            ws_url=address.ws_url,
            workspace=self._workspace.roots,
            agents=self.profiles,
            auth=self._auth(doors),
            token=self._token,
            public_url=None if self._public is None else self._public.url,
            unix_socket=doors.unix[0] if doors.unix else None,
            log_file=self._logging.path,
        )

    def _announce(self, address: Address, doors: Doors) -> None:
        took = time.monotonic() - self._began
        log.info(
            "listening",
            url=address.url,
            version=__version__,
            pid=os.getpid(),
            workspace=[str(root) for root in self._workspace.roots],
            agents=list(self.profiles),
            startup_ms=round(took * 1000),
            file_only=True,
        )
        note = self.profiles.note
        roots = [str(root) for root in self._workspace.roots]
        if self._json_lines:
            line: dict[str, Any] = {
                "event": "ready",
                "version": __version__,
                "pid": os.getpid(),
                "url": address.url,
                "ws_url": address.ws_url,
                "http_url": address.http_url,
                "unix_socket": doors.unix[0] if doors.unix else None,
                "workspace": roots,
                "agents": list(self.profiles),
                "auth": self._auth(doors),
                "log_file": None if self._logging.path is None else str(self._logging.path),
                "startup_ms": round(took * 1000),
            }
            if note:
                line["note"] = note
            if self._public is not None:
                line |= {"public_url": self._public.url, "public_ws_url": self._public.ws_url}
            for warning in self._warnings:
                log.warning("configuration", warning=warning)
            # In one write, so that no line of the log falls into it.
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()
            return
        url, ws_url = self._links(address)
        rows = [
            *(_tcp_rows(url, ws_url) if doors.ports else ()),
            *([] if self._public is None else [("Local", address.url)]),
            *(("Unix", path) for path in doors.unix),
            ("Workspace", ", ".join(roots)),
            ("Agent", ", ".join(f"{name} (starting)" for name in list(self.profiles)[:1])),
            ("Auth", self._auth(doors)),
            ("Log", str(self._logging.path or "stderr only")),
            ("Stop", "Ctrl-C; a second Ctrl-C does not wait for running turns"),
        ]
        others = list(self.profiles)[1:]
        if others and doors.ports:
            base = ws_url.removesuffix("/acp")
            also = ("Also", ", ".join(f"{base}/agents/{n}/acp" for n in others))
            rows.insert([name for name, _ in rows].index("Auth"), also)
        rows += [("Warning", warning) for warning in self._warnings]
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
            log.error(
                "agent_failed",
                agent=profile.name,
                error=exc.message,
                remedy=exc.remedy,
                file_only=not self._json_lines,
            )
            if not self._json_lines:
                text = clean(exc.message)
                print(f"  {'Agent':<10} {profile.name} failed: {text}", file=sys.stderr)
                if exc.remedy:
                    print(f"  {'':<10} {clean(exc.remedy)}", file=sys.stderr, flush=True)
            return
        await self._announced.wait()
        name, version = profile.name, None
        if isinstance(info, dict):
            version = info.get("version")
            name = str(info.get("title") or info.get("name") or name)
        plain = not self._json_lines
        log.info("agent_ready", agent=profile.name, name=name, version=version, file_only=plain)
        if not self._json_lines:
            text = clean(f"{name} {version or '(no version told)'} is ready ({_seconds(took)})")
            print(f"  {'Agent':<10} {text}", file=sys.stderr, flush=True)

    async def _send_traces(self, url: str) -> None:
        """Spans wait until the libraries are there, which takes longer than anything else here."""
        await self._announced.wait()
        try:
            exporter = await trio.to_thread.run_sync(otlp.Exporter, url)
        except Exception as exc:
            # Of a library, over its variables: traces are no reason not to serve.
            tracing.attach(None)
            log.error("traces_not_sent", reason=f"{type(exc).__name__}: {exc}")
            return
        tracing.attach(exporter.export)
        try:
            await trio.sleep_forever()
        finally:
            tracing.attach(None)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_SPANS):
                await trio.to_thread.run_sync(exporter.close, abandon_on_cancel=True)

    # ---- stop -----------------------------------------------------------------------------------

    async def _signals(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        ends = [signal.SIGINT, signal.SIGTERM]
        if self._hang_up != "nothing":
            ends.append(signal.SIGHUP)  # else it stays ignored
        with trio.open_signal_receiver(*ends) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP and self._hang_up == "reload":
                    self._reload_asked.set()
                    continue
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

    async def _reload_when_asked(self, reloader: Reloader) -> None:
        """Several SIGHUPs that come meanwhile are one."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked = trio.Event()
            with suppress(GatewayError):  # it has been logged
                await reloader.reload("SIGHUP")

    async def _stop(self, hub: Hub, listener: Listener) -> None:
        """The ladder: refuse new work, end the turns, tell the clients, stop the agents.

        What has not ended within the grace is killed when the nursery is cancelled.
        """
        grace = self.settings.shutdown_grace
        self._manager.draining = True
        if hub.limits is not None:
            hub.limits.draining = True
        with trio.move_on_after(grace):
            await listener.drain()
            await self._manager.close_all("daemon_shutdown", grace / 2)
            # The writers have been woken; what they hold goes out with the close.
            hub.kick_all(1001, "The gateway is shutting down")
            with trio.move_on_after(FLUSH):
                await hub.empty()
            await self._pool.close()


def _tcp_rows(url: str, ws_url: str) -> tuple[tuple[str, str], ...]:
    return (
        ("WebSocket", ws_url),
        ("HTTP", url + "/acp"),
        ("Web, REST", url + "/"),
    )


def _import(*modules: str) -> None:
    for name in modules:
        importlib.import_module(name)


def _seconds(took: float) -> str:
    return f"{took:.1f} s" if took >= 1 else f"{took * 1000:.0f} ms"
