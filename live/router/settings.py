"""What can be set on the router."""

from __future__ import annotations

from dataclasses import dataclass, fields

from voltana import checks
from voltana.errors import UserError


@dataclass(frozen=True)
class RouterSettings:
    """Limits and time-outs. Times in seconds, sizes in bytes.

    Raises:
        UserError: a value that is not a number above zero (`max_queued` may be 0; `host` is not checked).
    """

    host: str = "127.0.0.1"
    """Address to listen at. Anything but loopback lets others in: the router has no authentication of its own."""
    port: int = 0
    """0: any free one."""
    max_in_flight: int = 1024
    """Requests at the instances at a time."""
    max_queued: int = 1024
    """Requests that wait for a place there; one more is answered with 503."""
    queue_timeout_s: float = 30.0
    max_connections: int = 8192
    """Clients connected at a time."""
    max_header_bytes: int = 32 * 1024
    max_body_bytes: int = 16 * 1024 * 1024
    max_prompts: int = 1024
    """Of one request."""
    max_buffered_bytes: int = 256 * 1024 * 1024
    """Request bodies held at a time, all together."""
    write_buffer_bytes: int = 64 * 1024
    """What may wait for a slow client before the instance's answer is no longer read."""
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    """How long a client's connection may idle."""
    stall_timeout_s: float = 60.0
    """How long a client may leave a full write buffer untouched."""
    connect_timeout_s: float = 2.0
    first_byte_timeout_s: float = 600.0
    """From sending a request to the first byte of its answer."""
    idle_timeout_s: float = 300.0
    """Between two parts of an answer."""
    upstream_keep_alive_s: float = 3.0
    """Age at which an idle connection to an instance is dropped; below the 5 s at which stock SGLang closes it."""
    health_interval_s: float = 5.0
    health_timeout_s: float = 10.0
    fail_after: int = 3
    """Answers lost in a row that take an instance out; a refused connection does so at once."""
    drain_s: float = 10.0
    """How long requests in flight may go on after a stop was asked for."""
    chars_per_token: float = 4.0
    """Estimates the tokens of a prompt that comes as text."""
    clock_mhz: int = 0
    """What policies are told of an instance's clock where no telemetry tells it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("port", "max_queued", "clock_mhz"):
                checks.number(field.name, value, low=0)
            elif field.name != "host":
                checks.number(field.name, value, above=0)
            if field.type == "int" and not isinstance(value, int):
                raise UserError(f"{field.name}: found {value!r}, allowed: a whole number")
        if self.port > 65535:
            raise UserError(f"port: found {self.port}, allowed: 0 to 65535")
