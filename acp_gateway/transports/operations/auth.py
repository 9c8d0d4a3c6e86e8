"""Signing in at a provider: device flows (RFC 8628) that the daemon runs.

Codes are for the client that began the flow. Over JSON-RPC the answers have the members of Qwen's
methods and those of the routes.
"""

from __future__ import annotations

from typing import Any

from acp_gateway.core.device_effects import Owner
from acp_gateway.core.device_flow import Flow
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.device_flow import SignIns
from acp_gateway.transports.operations.call import NO_STORE, Call, Reply, bad_request


def _sign_ins(call: Call) -> SignIns:
    assert call.hub.sign_ins is not None
    return call.hub.sign_ins


def _owner(call: Call) -> Owner:
    caller = call.caller
    return Owner(client_id=caller.client_id, binding=caller.binding, party=caller.identity.party)


def _codes(flow: Flow, owner: Owner) -> dict[str, Any]:
    """Of a pending flow, for its initiator."""
    if flow.codes is None or owner != flow.owner:
        return {}
    complete = flow.codes.verification_uri_complete
    return {
        "userCode": flow.codes.user_code,
        "verificationUri": flow.codes.verification_uri,
        **({} if complete is None else {"verificationUriComplete": complete}),
    }


def _initiator(flow: Flow, owner: Owner) -> dict[str, Any]:
    if owner.client_id is None or owner != flow.owner:
        return {}
    return {"initiatorClientId": owner.client_id}


def _state(flow: Flow, owner: Owner) -> dict[str, Any]:
    body: dict[str, Any] = {
        "deviceFlowId": flow.id,
        "providerId": flow.provider,
        "status": flow.status.value,
        "createdAt": flow.wall(flow.began),
    }
    if flow.failure is not None:
        body |= {"errorKind": flow.failure.word, "hint": flow.failure.hint}
    if flow.pending:
        body |= {"expiresAt": flow.expires_ms, "intervalMs": round(flow.interval * 1000)}
    if flow.polled_at is not None:
        body["lastPolledAt"] = flow.wall(flow.polled_at)
    return body | _codes(flow, owner) | _initiator(flow, owner)


async def start(call: Call) -> Any:
    provider = call.params.get("providerId")
    if not isinstance(provider, str) or not provider:
        raise bad_request("`providerId` must be a non-empty string", field="providerId")
    owner = _owner(call)
    flow, attached = await _sign_ins(call).start(provider, owner)
    if call.caller.binding is not None:
        state = _state(flow, owner)
        return {**state, "view": state, "attached": attached}
    body = {
        "deviceFlowId": flow.id,
        "providerId": flow.provider,
        "status": flow.status.value,
        "expiresAt": flow.expires_ms,
        "intervalMs": round(flow.interval * 1000),
        "attached": attached,
        **_codes(flow, owner),
        **_initiator(flow, owner),
    }
    return Reply(body=body, status=200 if attached else 201, headers=NO_STORE)


async def get(call: Call) -> Any:
    flow = _sign_ins(call).get(call.text("id") or "")
    return Reply(body=_state(flow, _owner(call)), headers=NO_STORE)


async def cancel(call: Call) -> Any:
    sign_ins, owner, flow_id = _sign_ins(call), _owner(call), call.text("id") or ""
    over_rpc = call.caller.binding is not None
    if over_rpc:
        flow = sign_ins.get(flow_id)
        if flow.owner.client_id is not None and flow.owner != owner:
            raise GatewayError(
                ErrorKind.INVALID_PARAMS,
                "Only the client that began a sign-in can cancel it",
                remedy="cancel it over REST, or wait until it expires",
            )
    ended = sign_ins.cancel(flow_id, owner)
    return {"ok": True, "alreadyTerminal": ended} if over_rpc else None


async def status(call: Call) -> Any:
    sign_ins = _sign_ins(call)
    return {
        "v": 1,
        "workspaceCwd": str(call.manager.workspace.default),
        "providers": [],
        "pendingDeviceFlows": [
            {
                "deviceFlowId": flow.id,
                "providerId": flow.provider,
                "expiresAt": flow.expires_ms,
            }
            for flow in sign_ins.pending()
        ],
        "supportedDeviceFlowProviders": list(sign_ins.providers),
    }
