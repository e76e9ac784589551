"""Workloads: where request lengths and arrival times come from.

A trace is a `LengthSource` (how long requests are) with an `ArrivalProcess` (when they come); `request_stream`
joins the two into the requests of a run. Both are plain objects, each configured by one YAML file.
"""

from voltana.traces.stream import ArrivalProcess, Block, LengthSource, Request, RequestStream, request_stream

__all__ = ["ArrivalProcess", "Block", "LengthSource", "Request", "RequestStream", "request_stream"]
