"""Frequency controllers and routers, one module per policy, and how they are built and asked."""
