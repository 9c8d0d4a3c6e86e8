"""What the front door takes from hypercorn is not a public interface: changes must be seen."""

from __future__ import annotations

import inspect

import hypercorn
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio import tcp_server
from hypercorn.trio.worker_context import WorkerContext

ADVICE = "hypercorn changed: read transports/listener.py and peer_stream.py against it"


def test_the_server_s_signature() -> None:
    names = list(inspect.signature(tcp_server.TCPServer.__init__).parameters)
    assert names == ["self", "app", "config", "context", "state", "stream"], ADVICE
    assert inspect.iscoroutinefunction(tcp_server.TCPServer.run), ADVICE
    assert hasattr(tcp_server.TCPServer, "__await__"), ADVICE
    assert list(inspect.signature(WorkerContext.__init__).parameters) == ["self", "max_requests"]
    assert list(inspect.signature(ASGIWrapper.__init__).parameters) == ["self", "app"], ADVICE


def test_what_the_server_asks_of_a_stream() -> None:
    """It tells TLS from plain by these names; `PeerStream` has them or lacks them on purpose."""
    source = inspect.getsource(tcp_server)
    for use in (
        "await self.stream.do_handshake()",
        "except AttributeError:  # Not SSL",
        "self.stream.selected_alpn_protocol()",
        "self.stream.transport_stream.socket",
        "self.stream.socket",
        "await self.stream.send_all(event.data)",
        "await self.stream.receive_some(MAX_RECV)",
        "await self.stream.send_eof()",
        "await self.stream.aclose()",
        "except (trio.BrokenResourceError, trio.ClosedResourceError):",
    ):
        assert use in source, f"{ADVICE}: {use}"


def test_the_settings_that_are_set_exist() -> None:
    config = Config()
    for name in (
        *("accesslog", "errorlog", "include_server_header", "keep_alive_timeout"),
        *("keep_alive_max_requests", "h11_max_incomplete_size", "h2_max_concurrent_streams"),
        *("websocket_max_message_size", "max_app_queue_size"),
    ):
        assert hasattr(config, name), f"{ADVICE}: Config.{name}"


def test_the_version_is_the_pinned_one() -> None:
    from importlib.metadata import version

    assert version("hypercorn").startswith("0.18."), ADVICE
    assert hypercorn is not None
