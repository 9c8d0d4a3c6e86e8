"""A real ACP v1 agent over stdio that needs no model: ``python -m acp_gateway.demo_agent``.

It streams answers, shows plans, asks for permission and writes files, so that a first run and the
tests have a light agent with predictable behaviour. It imports only quick parts of the standard
library and nothing of the rest of the package: to the gateway it is an agent like any other.
"""
