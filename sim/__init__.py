"""The simulated cluster: prefill and decode instances on GPUs whose physics is `voltana.sim.plant`, on SimPy."""
