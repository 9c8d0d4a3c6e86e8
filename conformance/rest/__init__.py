"""What the cases of the daemon surface use: REST calls, event streams, sessions."""
