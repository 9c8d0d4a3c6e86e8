"""The handlers of `protocol.extensions`, the same for REST and JSON-RPC."""
