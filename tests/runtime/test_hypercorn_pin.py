"""What the HTTP server takes from hypercorn is not a public interface: changes must be seen."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio import task_group, tcp_server
from hypercorn.trio.worker_context import WorkerContext

ADVICE = "hypercorn changed: read transports/http_server.py and peer_stream.py against it"

# The code that is overridden, or that calls what is overridden.
READ = {
    tcp_server.TCPServer: "5593e38b",
    task_group.TaskGroup: "8467a3a1",
    task_group._handle: "06081a56",
    ProtocolWrapper: "caf94918",
    H11Protocol: "b32a61e0",
    HTTPStream: "e0f656fe",
}


@pytest.mark.parametrize("what", READ, ids=lambda what: what.__name__)
def test_what_is_overridden_is_as_it_was_read(what: Callable[..., Any]) -> None:
    found = hashlib.sha256(inspect.getsource(what).encode()).hexdigest()[:8]
    assert found == READ[what], ADVICE


def test_signatures() -> None:
    for what, names in {
        tcp_server.TCPServer: "app config context state stream",
        H11Protocol: "app config context task_group connection_state ssl client server send",
        HTTPStream: "app config context task_group ssl client server send stream_id",
        WorkerContext: "max_requests",
        ASGIWrapper: "app",
    }.items():
        found = list(inspect.signature(what.__init__).parameters)
        assert found == ["self", *names.split()], f"{ADVICE}: {what.__name__}"


def test_the_settings_that_are_set_exist() -> None:
    config = Config()
    for name in (
        *("accesslog", "errorlog", "include_server_header", "response_headers"),
        *("keep_alive_max_requests", "h11_max_incomplete_size", "h2_max_concurrent_streams"),
        *("websocket_max_message_size", "max_app_queue_size"),
    ):
        assert hasattr(config, name), f"{ADVICE}: Config.{name}"


def test_the_version_is_the_pinned_one() -> None:
    assert version("hypercorn").startswith("0.18."), ADVICE
