"""One simulated run, from its configuration to its record, and the commands."""
