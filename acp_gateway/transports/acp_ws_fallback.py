"""``/acp`` over a WebSocket that came to hypercorn: an upgrade on a connection already used for
HTTP, or extended CONNECT on HTTP/2 (RFC 8441). The same connection, without the fast path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from acp_gateway.core.identity import Identity
from acp_gateway.transports.acp_ws import WebSocketPeer, handle_text
from acp_gateway.transports.client_address import CLIENT, caller_key
from acp_gateway.transports.guards import subprotocol
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.outlets import Pump, bare_outlet
from acp_gateway.wire.json_codec import dumps


async def serve_fallback(socket: Any, hub: Hub, identity: Identity) -> None:
    """``socket`` is Quart's websocket of the current request; the guards have let it in."""
    profile = hub.profile_at(socket.path)
    refusal = hub.admit()
    if profile is None or refusal is not None:
        status, body = (404, {"error": "not found"}) if refusal is None else refusal.to_http()
        await socket.send_denial(status, dumps(body))
        return
    client = socket.scope["extensions"][CLIENT]
    peer = WebSocketPeer(hub, profile, loopback=client.local, identity=identity)
    peer.caller = caller_key(client.address, identity.party)
    peer.outlet = bare_outlet(peer.wakeup)
    await socket.accept(
        headers={"Acp-Connection-Id": peer.id},
        subprotocol=subprotocol(socket.requested_subprotocols),
    )
    hub.add(peer)
    entry = hub.policy.keyring.hold(identity, peer.revoke)

    async def send(parts: Sequence[bytes]) -> None:
        for line in b"".join(parts).split(b"\n"):
            if line:
                with trio.fail_after(hub.settings.evict_timeout):
                    await socket.send(line.decode())
        # hypercorn's send may return without a checkpoint once the client has gone.
        await trio.lowlevel.checkpoint()

    pump = Pump(
        peer.outlet,
        peer.wakeup,
        send,
        peer.drained,
        stall=hub.settings.stall_timeout,
        finished=peer.is_kicked,
        slow=hub.traffic.slow,
    )
    peer.await_initialize(hub)
    try:
        with peer.scope:
            async with trio.open_nursery() as nursery:

                async def pumping() -> None:
                    await pump.run()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(pumping)
                while True:
                    data = await socket.receive()
                    if isinstance(data, str):
                        handle_text(data, peer, lambda c: nursery.start_soon(peer.serve, c))
    finally:
        hub.policy.keyring.release(entry)
        hub.patience.over(peer)
        hub.remove(peer)
        with trio.CancelScope(shield=True), trio.move_on_after(hub.settings.stall_timeout):
            await socket.close(*peer.farewell())
        peer.release()
