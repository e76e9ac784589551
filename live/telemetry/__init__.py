"""Load snapshots from servers to controllers and routers, every iteration."""
