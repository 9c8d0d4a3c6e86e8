"""The machines alive on trio: agents, sessions, workspace. Knows no HTTP, header or status code."""
