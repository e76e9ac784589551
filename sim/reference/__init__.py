"""The reference engine: every iteration is run, as processes on SimPy. It defines the semantics."""
