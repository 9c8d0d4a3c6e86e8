"""A gateway that puts any ACP coding agent behind one port for many clients."""

__version__ = "0.1.0"
