"""``python -m acp_gateway``: the same as the ``acp-gateway`` command."""

from acp_gateway.cli import main

if __name__ == "__main__":
    main()
