"""The simulated cluster: prefill and decode instances on GPUs whose physics is `sim.plant`, on SimPy."""
