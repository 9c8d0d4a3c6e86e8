"""Cursors of pages: opaque to clients, a text inside."""

from __future__ import annotations

import base64

from acp_gateway.protocol.errors import ErrorKind, GatewayError


def to_cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> str:
    """The text inside. Raises ``ValueError`` when there is none."""
    return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()


def bad_cursor(remedy: str) -> GatewayError:
    return GatewayError(ErrorKind.INVALID_CURSOR, "The cursor is not valid", remedy=remedy)
