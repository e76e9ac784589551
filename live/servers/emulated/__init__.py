"""Lightweight servers that speak the protocol of SGLang with the timing of the plant.

`instance` is the GPU and its queue in exact time, `calls` and `answers` the protocol's texts, `http` and `pairing` the
two kinds of connection. `server` holds them together, `roles` are its two kinds, `views` what it tells of itself;
`cluster` starts a set of processes.
"""
