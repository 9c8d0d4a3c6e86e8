"""What is required of the daemon surface: REST routes, event streams, votes, life of a session.

``must`` is the contract of the Qwen daemon as its clients rely on it; ``gateway`` marks what
acp-gateway promises beyond it. The CROSS rows run with an ACP client of either transport beside a
REST client.
"""

from __future__ import annotations

from conformance.requirement import Requirement
from conformance.rest.manifest_events import EVENT_REQUIREMENTS
from conformance.rest.manifest_operator import OPERATOR_REQUIREMENTS
from conformance.rest.manifest_sessions import SESSION_REQUIREMENTS

REST_REQUIREMENTS: tuple[Requirement, ...] = (
    *SESSION_REQUIREMENTS,
    *EVENT_REQUIREMENTS,
    *OPERATOR_REQUIREMENTS,
)
