"""GPU clocks, power and energy behind one interface: NVML, simulated, recorded; and the process that owns them."""
