"""The daemon's REST routes and event streams."""
