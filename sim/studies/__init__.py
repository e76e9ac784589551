"""Studies that use the simulator, which knows none of them."""
