"""What can be set on the router."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from voltana.section import Count, Positive, Section, WholeNumber


class RouterSettings(Section):
    """`router`: limits and time-outs. Times in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    """Address to listen at. Anything but loopback lets others in: the router has no authentication of its own."""
    port: Annotated[int, Field(ge=0, le=65535, strict=True)] = 0
    """0: any free one."""
    max_in_flight: Count = 1024
    """Requests at the instances at a time."""
    max_queued: WholeNumber = 1024
    """Requests that wait for a place there; one more is answered with 503."""
    queue_timeout_s: Positive = 30.0
    max_connections: Count = 8192
    """Clients connected at a time."""
    max_header_bytes: Count = 32 * 1024
    max_body_bytes: Count = 16 * 1024 * 1024
    max_prompts: Count = 1024
    """Of one request."""
    max_buffered_bytes: Count = 256 * 1024 * 1024
    """Request bodies held at a time, all together."""
    write_buffer_bytes: Count = 64 * 1024
    """What may wait for a slow client before the instance's answer is no longer read."""
    header_timeout_s: Positive = 10.0
    body_timeout_s: Positive = 60.0
    keep_alive_s: Positive = 75.0
    """How long a client's connection may idle."""
    stall_timeout_s: Positive = 60.0
    """How long a client may leave a full write buffer untouched."""
    connect_timeout_s: Positive = 2.0
    first_byte_timeout_s: Positive = 600.0
    """From sending a request to the first byte of its answer."""
    idle_timeout_s: Positive = 300.0
    """Between two parts of an answer."""
    upstream_keep_alive_s: Positive = 3.0
    """Age at which an idle connection to an instance is dropped; below the 5 s at which stock SGLang closes it."""
    health_interval_s: Positive = 5.0
    health_timeout_s: Positive = 10.0
    fail_after: Count = 3
    """Answers lost in a row that take an instance out; a refused connection does so at once."""
    drain_s: Positive = 10.0
    """How long requests in flight may go on after a stop was asked for."""
    chars_per_token: Positive = 4.0
    """Estimates the tokens of a prompt that comes as text."""
    clock_mhz: WholeNumber = 0
    """What policies are told of an instance's clock where no telemetry tells it."""
