"""Profiling a real GPU with nothing but torch."""
