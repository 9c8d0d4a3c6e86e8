"""Northbound: translate and guard. Knows no process, permission policy or file system."""
