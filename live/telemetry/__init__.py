"""Load snapshots from servers to controllers and routers, every iteration.

`message` is the wire, `publisher` and `subscriber` its two ends, `sglang_plugin` what publishes inside SGLang. Nothing
is imported here, so that the plugin costs a server next to nothing.
"""
