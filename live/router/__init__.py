"""The router in front of prefill and decode servers.

Where streams pass it speaks HTTP/1.1 by itself, because a proxy on aiohttp was measured at 1.6 to 2.1 times its CPU per
chunk. What it asks servers on its own behalf goes through `voltana.live.http`.
"""
