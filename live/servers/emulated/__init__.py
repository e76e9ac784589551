"""Lightweight servers that speak the protocol of SGLang with the timing of the plant.

`driver` tells the simulator's instance the time, `calls` and `answers` are the protocol's texts, `http` and `pairing`
the two kinds of connection. `server` holds them together, `roles` are its two kinds, `views` what it tells of itself;
`cluster` starts a set of processes.
"""
