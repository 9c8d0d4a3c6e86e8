"""Bytes to messages and back. Pure; knows no method name."""
