"""SGLang's forward-pass metrics become our messages."""

from typing import Any

import msgspec
import pytest

from tests.live.telemetry.forward_pass import ForwardPassDecoder
from voltana.live.telemetry.message import WrongMessageError


def metrics(counter: int, wall_time: float = 0.02, **changes: Any) -> list[bytes]:
    """Frames as SGLang sends them."""
    scheduled = {
        "num_prefill_requests": 2,
        "sum_prefill_tokens": 700,
        "var_prefill_length": 1.0,
        "sum_prefill_kv_tokens": 0,
        "num_decode_requests": 5,
        "sum_decode_kv_tokens": 900,
        "var_decode_kv_tokens": 0.0,
    }
    queued = {**dict.fromkeys(scheduled, 0), "num_prefill_requests": 3, "sum_prefill_tokens": 333}
    body = {
        "version": 1,
        "worker_id": "",
        "dp_rank": 0,
        "counter_id": counter,
        "wall_time": wall_time,
        "scheduled_requests": scheduled,
        "queued_requests": queued,
    }
    return [b"", counter.to_bytes(8, "big"), msgspec.msgpack.encode(body | changes)]


def test_a_prefill_iteration() -> None:
    message = ForwardPassDecoder("prefill-0", "prefill")(metrics(4))
    assert (message.batch_size, message.batch_tokens, message.queued, message.queued_tokens) == (2, 700, 3, 333)
    assert (message.sequence, message.iterations, message.busy_s, message.idle_s) == (4, 1, 0.02, 0.0)


def test_decode_iterations_add_up_and_idleness_is_seen() -> None:
    decode = ForwardPassDecoder("decode-0", "decode")
    for counter in range(10):
        message = decode(metrics(counter))
    assert (message.batch_size, message.batch_tokens, message.queued, message.iterations) == (5, 900, 0, 10)
    assert message.busy_s == pytest.approx(0.2)
    nothing = dict.fromkeys(("num_prefill_requests", "sum_prefill_tokens", "num_decode_requests"), 0)
    heartbeat = metrics(10, 0.0, scheduled_requests=nothing | {"sum_decode_kv_tokens": 0})
    message = decode(heartbeat)
    assert (message.batch_size, message.iterations) == (0, 10)
    assert 0 <= message.idle_s < 5


@pytest.mark.parametrize("frames", [[b"junk"], metrics(0, version=2), metrics(0, scheduled_requests=None)])
def test_what_is_not_understood_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WrongMessageError):
        ForwardPassDecoder("decode-0", "decode")(frames)
