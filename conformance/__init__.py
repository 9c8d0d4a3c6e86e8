"""Black-box conformance suite for ACP servers over WebSocket and Streamable HTTP."""
