"""What is required of a server, one row each: the contract that the cases prove.

An id is for ever: it is never given to another requirement. Levels: ``must`` and ``should`` come
from the protocol (or, where the protocol is silent, from what every client in the field needs);
``gateway`` marks the stronger promises of acp-gateway, which another server may break and still be
right. A source is a part of ACP v1, the remote transport RFD, an internet standard, or the gateway.
"""

from __future__ import annotations

from conformance.requirement import Requirement
from conformance.requirement import rows as _rows
from conformance.rest.manifest import REST_REQUIREMENTS

ACP_INIT = "ACP v1, Initialization"
ACP_SESSION = "ACP v1, Session Setup"
ACP_LIST = "ACP v1, Session List"
ACP_MODES = "ACP v1, Session Modes and Config Options"
ACP_PROMPT = "ACP v1, Prompt Turn"
ACP_CANCEL = "ACP v1, Cancellation"
ACP_PERMISSION = "ACP v1, Tool Calls: permission"
ACP_SCHEMA = "ACP v1, schema"
ACP_EXT = "ACP v1, Extensibility"
JSONRPC = "JSON-RPC 2.0"
RFD_HTTP = "Remote transport RFD, Streamable HTTP"
RFD_WS = "Remote transport RFD, WebSocket"
RFC_WS = "RFC 6455"
RFC_HTTP = "RFC 9110"
SSE = "WHATWG HTML, server-sent events"
GATEWAY = "acp-gateway"

ACP_REQUIREMENTS: tuple[Requirement, ...] = (
    # --- initialize and authentication by ACP
    *_rows(
        ACP_INIT,
        "both",
        ("INIT-001", "must", "initialize with version 1 is answered with protocolVersion 1"),
        ("INIT-002", "must", "an unknown version (99) is answered with one the server speaks"),
        ("INIT-003", "must", "version 0 is answered with a version the server speaks"),
        ("INIT-004", "gateway", "version 2 is answered with 1"),
        ("INIT-005", "should", "a junk or missing protocolVersion gets 1 or a -32602"),
        ("INIT-006", "must", "capabilities have the types of the schema; markers are objects"),
        ("INIT-007", "should", "the answer carries agentInfo with name and version"),
        ("INIT-008", "gateway", "loadSession, list, resume and close are advertised"),
        ("INIT-009", "must", "authMethods, when present, is a list of objects with id and name"),
        ("INIT-010", "must", "initialize with nothing but protocolVersion works"),
        ("INIT-011", "should", "unknown members and bad optional values do not fail initialize"),
        ("INIT-014", "should", "authenticate with a method that was not offered is refused"),
        ("INIT-015", "should", "authenticate without methodId is a -32602"),
        ("INIT-016", "must", "logout without params gets {} or -32601"),
    ),
    *_rows(
        ACP_INIT,
        "ws",
        ("INIT-012", "must", "a request before initialize is refused with -32600"),
        ("INIT-013", "should", "a second initialize is refused and the connection goes on"),
    ),
    # --- sessions
    *_rows(
        ACP_SESSION,
        "both",
        ("SESS-001", "must", "session/new gives a new, non-empty session id each time"),
        ("SESS-002", "must", "modes name the current mode and list id and name of each"),
        ("SESS-003", "must", "configOptions have id, name, type, a current value and options"),
        ("SESS-004", "must", "the agent works in the cwd of session/new"),
        ("SESS-005", "must", "additionalDirectories reach the agent"),
        ("SESS-006", "must", "mcpServers reach the agent"),
        ("SESS-007", "must", "session/load of an unknown session is an error"),
        ("SESS-008", "must", "session/resume of an unknown session is an error"),
        ("SESS-009", "must", "session/prompt to an unknown session is an error"),
        ("SESS-010", "should", "an unknown session is -32002, for load, resume and prompt"),
        ("SESS-016", "must", "session/close answers {} and the session takes no more prompts"),
        ("SESS-017", "must", "session/close of an unknown session is answered"),
        ("SESS-018", "must", "session/close in a turn ends its prompt as cancelled"),
        ("SESS-019", "must", "a deleted session is not listed any more"),
        ("SESS-020", "should", "deleting a session that is already deleted succeeds"),
        ("SESS-021", "must", "session/fork gives another session with the history, or -32601"),
        ("SESS-027", "must", "session/resume sends no history"),
        ("SESS-028", "gateway", "the results of load and resume carry the sessionId"),
        ("SESS-030", "should", "session/new without mcpServers, or with a bad list, works"),
        ("SESS-031", "must", "a closed session can be loaded again with its history"),
        ("SESS-032", "gateway", "a session made over one transport is loaded over the other"),
    ),
    *_rows(
        ACP_SESSION,
        "ws",
        ("SESS-029", "must", "history comes before the answer to session/load, and only once"),
    ),
    *_rows(
        ACP_LIST,
        "both",
        ("SESS-011", "must", "session/list has an open session with its cwd"),
        ("SESS-012", "must", "session/list filters by cwd and gives [] when none is there"),
        ("SESS-013", "should", "session/list refuses a cursor that it never gave"),
        ("SESS-014", "must", "following nextCursor ends and lists no session twice"),
        ("SESS-015", "must", "a cursor or cwd of the wrong type is a -32602"),
    ),
    *_rows(
        ACP_MODES,
        "both",
        ("SESS-022", "must", "session/set_mode answers {} and the mode is in force"),
        ("SESS-023", "should", "session/set_mode tells of the new mode by current_mode_update"),
        ("SESS-024", "must", "session/set_mode to an unknown mode is an error"),
        ("SESS-025", "must", "session/set_config_option answers the complete, changed list"),
        ("SESS-026", "must", "session/set_config_option of an unknown option is an error"),
    ),
    # --- routing of messages
    *_rows(
        JSONRPC,
        "both",
        ("ROUTE-001", "must", "a string id is echoed unchanged"),
        ("ROUTE-002", "must", "the id 0 is echoed unchanged"),
        ("ROUTE-003", "must", "a negative id is echoed unchanged"),
        ("ROUTE-004", "should", "a fractional id is echoed unchanged, or refused with id null"),
        ("ROUTE-005", "should", "a null id is answered with id null"),
        ("ROUTE-006", "must", "an integer id above 2^53 is echoed exactly"),
        ("ROUTE-007", "must", "an unknown method is -32601"),
        ("ROUTE-012", "must", "params may be absent where nothing is required"),
        ("ROUTE-013", "must", "params may be null where nothing is required"),
        ("ROUTE-014", "must", "params that are an array are a -32602"),
        ("ROUTE-015", "must", "a response to an id that was never asked is ignored"),
        ("ROUTE-016", "must", "unknown members beside jsonrpc, id and method are tolerated"),
        ("ROUTE-020", "must", "two connections may use the same ids"),
        ("ROUTE-022", "must", "session/cancel sent as a request is answered"),
    ),
    *_rows(
        ACP_EXT,
        "both",
        ("ROUTE-008", "must", "an unknown notification is ignored, with or without underscore"),
        ("ROUTE-009", "must", "an unknown $/ notification is ignored"),
        ("ROUTE-010", "must", "an unknown underscore request gets an answer"),
        ("ROUTE-011", "gateway", "an underscore request reaches the agent and comes back"),
        ("ROUTE-017", "must", "unknown members in params are tolerated"),
        ("ROUTE-023", "gateway", "any Unicode text survives the way to the agent and back"),
    ),
    *_rows(
        ACP_PROMPT,
        "both",
        ("ROUTE-018", "must", "turns of two sessions on one connection do not mix"),
        ("ROUTE-019", "must", "a running turn does not hold up other requests"),
        ("ROUTE-021", "must", "questions of two sessions on one connection have different ids"),
        ("ROUTE-024", "must", "100 requests at once are all answered"),
    ),
    # --- errors
    *_rows(
        JSONRPC,
        "ws",
        ("ERR-001", "must", "text that is no JSON is -32700 with id null; the link goes on"),
        ("ERR-002", "must", "JSON that is no object is -32600 with id null; the link goes on"),
        ("ERR-003", "should", "a batch is -32600 with id null; the link goes on"),
        ("ERR-004", "must", "a wrong or missing jsonrpc member is -32600"),
        ("ERR-005", "must", "a method that is no string is -32600"),
        ("ERR-006", "must", "a message with neither method nor result nor error is -32600"),
        ("ERR-007", "should", "an id that is an object, a list or a boolean is -32600, id null"),
        ("ERR-008", "must", "JSON nested 100,000 deep is an error, not the end of the server"),
    ),
    *_rows(
        ACP_SCHEMA,
        "both",
        (
            "SCHEMA-001",
            "must",
            "answers to initialize, new, list, load, set_mode and close are valid",
        ),
        ("SCHEMA-002", "must", "every update and permission request of a turn is valid"),
        ("SCHEMA-003", "must", "error objects are valid"),
    ),
    *_rows(
        ACP_SCHEMA,
        "both",
        ("ERR-010", "must", "session/new without cwd is -32602 and names cwd"),
        ("ERR-011", "must", "a cwd that is no string is -32602 and names cwd"),
        ("ERR-012", "must", "a relative cwd is -32602"),
        ("ERR-013", "gateway", "a cwd outside the workspace is -32602"),
        ("ERR-014", "gateway", "an additional directory that is relative or outside is -32602"),
        ("ERR-015", "must", "session/prompt without sessionId is -32602 and names it"),
        ("ERR-016", "must", "session/prompt without prompt is -32602 and names it"),
        ("ERR-017", "must", "a prompt that is no list is -32602"),
        ("ERR-018", "must", "session/set_mode without modeId is -32602 and names it"),
        ("ERR-019", "must", "session/load without cwd is -32602 and names it"),
        ("ERR-022", "gateway", "an empty prompt is -32602"),
    ),
    *_rows(
        GATEWAY,
        "both",
        ("ERR-020", "gateway", "errors of the gateway carry data.errorKind and data.httpStatus"),
        ("ERR-021", "gateway", "no error shows a traceback or the name of a Python exception"),
    ),
    # --- Streamable HTTP
    *_rows(
        RFD_HTTP,
        "http",
        ("HTTP-001", "must", "POST initialize is 200 with JSON and Acp-Connection-Id"),
        ("HTTP-002", "must", "POST with another or no Content-Type is 415"),
        ("HTTP-003", "must", "application/json with a charset is accepted"),
        ("HTTP-004", "must", "GET whose Accept lacks text/event-stream is 406"),
        ("HTTP-005", "must", "POST without Acp-Connection-Id is 400"),
        ("HTTP-006", "must", "POST with an unknown Acp-Connection-Id is 404"),
        ("HTTP-007", "must", "GET without Acp-Connection-Id is 400"),
        ("HTTP-008", "must", "GET with an unknown Acp-Connection-Id is 404"),
        ("HTTP-009", "must", "GET for an unknown session is 404, or a silent 200"),
        ("HTTP-010", "must", "the session stream of a stored session opens before session/load"),
        ("HTTP-011", "must", "DELETE is 202; the connection is unknown (404) after it"),
        ("HTTP-012", "must", "DELETE without Acp-Connection-Id is 400"),
        ("HTTP-013", "should", "DELETE of an unknown connection is 404"),
        ("HTTP-014", "must", "PUT and PATCH are 405"),
        ("HTTP-015", "must", "an accepted POST is 202 with an empty body"),
        ("HTTP-016", "must", "a batch is 501 and is not executed"),
        ("HTTP-017", "must", "messages before the connection stream opens are kept for it"),
        ("HTTP-018", "must", "messages before the session stream opens are kept for it"),
        ("HTTP-019", "gateway", "a second GET of a stream takes over; the first one ends"),
        ("HTTP-022", "must", "the whole flow works over HTTP/2 with prior knowledge"),
        ("HTTP-026", "must", "a body that is no JSON is 400"),
        ("HTTP-027", "must", "a body that is no JSON-RPC message is 400"),
        ("HTTP-029", "gateway", "a session request without Acp-Session-Id works"),
        ("HTTP-030", "gateway", "a permission answer without Acp-Session-Id works"),
        ("HTTP-031", "should", "Acp-Session-Id that contradicts params.sessionId is refused"),
        ("HTTP-032", "must", "initialize with Acp-Connection-Id is a new connection or 400"),
        ("HTTP-033", "must", "the answers to session/new and load come on the connection stream"),
        ("HTTP-034", "must", "updates and the prompt's answer come on the session stream"),
        ("HTTP-037", "must", "a session outlives the DELETE of its connection"),
        ("HTTP-043", "must", "Acp-Connection-Id is matched in any case of the header's name"),
    ),
    *_rows(
        SSE,
        "http",
        ("HTTP-020", "must", "streams are text/event-stream and not to be cached"),
        ("HTTP-021", "must", "events end with LF LF, hold no CR and one line of JSON"),
    ),
    *_rows(
        RFC_HTTP,
        "http",
        ("HTTP-028", "must", "a body over the limit is 413, and the server goes on"),
        ("HTTP-040", "must", "a chunked request body is accepted"),
        ("HTTP-041", "must", "a garbled request line is 400 or the end of that connection only"),
    ),
    *_rows(
        GATEWAY,
        "http",
        ("HTTP-023", "gateway", "a foreign Host is 403"),
        ("HTTP-024", "gateway", "a foreign Origin is 403, also null"),
        ("HTTP-025", "gateway", "the server's own Origin is accepted"),
        ("HTTP-035", "gateway", "session events have an id; Last-Event-ID resumes without a gap"),
        ("HTTP-036", "gateway", "HEAD opens no stream and swallows nothing"),
        ("HTTP-038", "gateway", "errors are JSON with a sentence and a code, also 404 and 405"),
        ("HTTP-039", "gateway", "/health, /status and /readyz answer 200"),
        ("HTTP-042", "gateway", "history is the first on the session stream after load"),
    ),
    # --- WebSocket
    *_rows(
        RFD_WS,
        "ws",
        ("WS-001", "must", "the 101 carries Acp-Connection-Id, another one each time"),
        ("WS-002", "must", "binary frames are ignored"),
        ("WS-011", "should", "a connection without initialize is closed after its time"),
        ("WS-018", "must", "each frame holds exactly one JSON-RPC message"),
    ),
    *_rows(
        RFC_WS,
        "ws",
        ("WS-003", "must", "a message in fragments is put together"),
        ("WS-004", "must", "a ping is answered with a pong of the same payload"),
        ("WS-005", "must", "a message over the limit closes with 1009"),
        ("WS-006", "must", "an upgrade without Sec-WebSocket-Key is 400"),
        ("WS-007", "must", "an offered subprotocol is chosen, never a bearer one"),
        ("WS-008", "must", "no subprotocol is chosen when none was offered"),
        ("WS-009", "must", "invalid UTF-8 in a text frame closes with 1007"),
        ("WS-010", "must", "an unmasked frame closes with 1002"),
        ("WS-015", "must", "a ping inside a fragmented message is answered at once"),
        ("WS-016", "must", "Upgrade and Connection are read without regard to case and as lists"),
        ("WS-017", "must", "a close frame is answered with a close frame"),
        ("WS-020", "must", "an offer of permessage-deflate does not hurt"),
        ("WS-021", "must", "a reserved opcode or bit closes with 1002"),
        ("WS-022", "must", "an upgrade of an unknown path is no 101"),
    ),
    *_rows(
        GATEWAY,
        "ws",
        ("WS-012", "gateway", "an upgrade with a foreign Host is 403"),
        ("WS-013", "gateway", "an upgrade with a foreign Origin is 403, also null"),
        ("WS-014", "gateway", "an upgrade with the server's own Origin works"),
        ("WS-019", "gateway", "a query on the upgrade is ignored"),
        ("WS-023", "gateway", "an upgrade works on a connection that served a request before"),
    ),
    # --- prompts
    *_rows(
        ACP_PROMPT,
        "both",
        ("PROMPT-001", "must", "a prompt ends with one of the five stop reasons"),
        ("PROMPT-002", "must", "the agent's message comes before the answer"),
        ("PROMPT-003", "must", "1 chunk comes before the answer"),
        ("PROMPT-004", "must", "10 chunks come before the answer, in order"),
        ("PROMPT-005", "must", "100 chunks come before the answer, in order"),
        ("PROMPT-006", "must", "1,000 chunks come before the answer, in order"),
        ("PROMPT-007", "must", "5,000 chunks come before the answer, in order"),
        ("PROMPT-010", "must", "no update of a turn comes after its answer"),
        ("PROMPT-011", "must", "resource links are always taken in a prompt"),
        ("PROMPT-012", "must", "a tool call is opened, and updated to a final status"),
        ("PROMPT-013", "must", "a plan has entries with content, priority and status"),
        ("PROMPT-015", "should", "slash commands are listed by available_commands_update"),
    ),
    *_rows(
        GATEWAY,
        "both",
        ("PROMPT-008", "gateway", "prompts of one session run first in, first out"),
        ("PROMPT-009", "gateway", "a prompt beyond the queue's cap is refused, the others run"),
        ("PROMPT-014", "gateway", "the sender gets no echo of its prompt, the others get one"),
        ("PROMPT-016", "gateway", "a crashed agent ends its prompt with agent_exited"),
        ("PROMPT-017", "gateway", "a session goes on after its agent crashed"),
    ),
    # --- cancellation
    *_rows(
        ACP_CANCEL,
        "both",
        ("CANCEL-001", "must", "session/cancel ends a running prompt as cancelled"),
        ("CANCEL-002", "must", "session/cancel ends a prompt that waits for permission"),
        ("CANCEL-004", "must", "$/cancel_request ends the prompt: cancelled, or -32800"),
        ("CANCEL-005", "must", "session/cancel with nothing running is silent"),
        ("CANCEL-006", "must", "session/cancel of an unknown session is silent"),
        ("CANCEL-007", "must", "$/cancel_request of an unknown id is silent"),
        ("CANCEL-008", "must", "a session takes the next prompt after a cancel"),
        ("CANCEL-011", "must", "a flood stops soon after the cancel, nothing follows the answer"),
    ),
    *_rows(
        GATEWAY,
        "both",
        ("CANCEL-003", "gateway", "session/cancel also ends the client's queued prompts"),
        ("CANCEL-009", "gateway", "a client may cancel the turn that another one started"),
        ("CANCEL-010", "gateway", "$/cancel_request of a queued prompt leaves the running one"),
        ("CANCEL-012", "gateway", "a permission that a cancel settles is withdrawn by request"),
    ),
    # --- permission
    *_rows(
        ACP_PERMISSION,
        "both",
        ("PERM-001", "must", "after allow the tool runs and the turn ends"),
        ("PERM-002", "must", "after reject the tool does not run and the turn ends"),
        ("PERM-003", "must", "the question names session, tool call and its options"),
        ("PERM-004", "must", "after the outcome cancelled the tool does not run"),
    ),
    *_rows(
        GATEWAY,
        "both",
        ("PERM-005", "gateway", "every attached client is asked"),
        ("PERM-006", "gateway", "the first answer wins, the others get $/cancel_request"),
        ("PERM-007", "gateway", "a late answer is ignored"),
        ("PERM-008", "gateway", "a malformed or unknown answer does not decide for the others"),
        ("PERM-009", "gateway", "a question waits while no client is there; load asks it again"),
        ("PERM-010", "gateway", "a settled question is not asked again by load"),
        ("PERM-011", "gateway", "a client that joins by resume is asked, too"),
        ("PERM-012", "gateway", "a bystander that leaves does not decide"),
        ("PERM-013", "gateway", "the same answer sent twice is harmless"),
    ),
    # --- reconnect and several clients
    *_rows(
        GATEWAY,
        "both",
        ("RECON-001", "gateway", "dropped in a turn, a client gets all of it after load, once"),
        ("RECON-002", "gateway", "a dropped client does not cancel its turn"),
        ("RECON-003", "gateway", "two clients see the same updates but for the echo"),
        ("RECON-005", "gateway", "load gives the conversation of both sides in its order"),
        ("RECON-006", "gateway", "session/close detaches one client while another stays"),
        ("RECON-007", "gateway", "the answer of a dropped connection is not given to the next"),
        ("RECON-008", "gateway", "the session stays usable after ten quick reconnects"),
    ),
    *_rows(
        GATEWAY,
        "ws",
        ("RECON-004", "gateway", "a WebSocket and an HTTP client see the same updates"),
    ),
    # --- sizes
    *_rows(
        GATEWAY,
        "both",
        ("LIMIT-001", "gateway", "a prompt of 3 MB is taken"),
        ("LIMIT-002", "gateway", "a chunk of 1.5 MB arrives whole in messages under 1 MiB"),
        ("LIMIT-003", "gateway", "a chunk of 3 MB of multi-byte text arrives unharmed"),
        ("LIMIT-004", "gateway", "a message just under 10 MiB is taken"),
        ("LIMIT-005", "gateway", "200 chunks of 20 kB arrive whole"),
    ),
    # --- bearer token
    *_rows(
        GATEWAY,
        "both",
        ("AUTH-001", "gateway", "without a token the answer is 401"),
        ("AUTH-002", "gateway", "a wrong token is 401"),
        ("AUTH-003", "gateway", "the scheme is read in any case"),
    ),
    *_rows(
        GATEWAY,
        "http",
        ("AUTH-006", "gateway", "a token in the query of an ordinary request is not taken"),
    ),
    *_rows(
        GATEWAY,
        "ws",
        ("AUTH-004", "gateway", "the subprotocol qwen-bearer.<base64url> carries the token"),
        ("AUTH-005", "gateway", "?token= on the upgrade carries the token"),
    ),
)

REQUIREMENTS: tuple[Requirement, ...] = (*ACP_REQUIREMENTS, *REST_REQUIREMENTS)
BY_ID: dict[str, Requirement] = {row.id: row for row in REQUIREMENTS}
