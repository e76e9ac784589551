"""Profiling servers that run, by their telemetry."""
