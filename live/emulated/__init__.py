"""Lightweight servers that speak the protocol of SGLang with the timing of the plant."""
