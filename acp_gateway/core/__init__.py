"""State machines. Time comes in as a float, effects go out as values; no clock, task or file."""
