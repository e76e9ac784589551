"""GPU clocks, power and energy behind one interface: NVML, simulated; and the process that owns them."""
