"""Each modelled effect can be switched, and moves what it should."""

from collections.abc import Callable
from typing import Any

import pytest

from voltana.record import RunRecord

pytestmark = pytest.mark.slow

Run = Callable[..., RunRecord]


def _ttft(record: RunRecord) -> float:
    return float(record.summary["ttft_ms"]["mean"])


def _itl(record: RunRecord) -> float:
    return float(record.summary["itl_ms"]["mean"])


def _power(record: RunRecord) -> float:
    return float(record.instances().power_w.max())


def _first_gap(record: RunRecord) -> float:
    requests = record.requests()
    return float((requests.first_token_s - requests.prefill_end_s).mean())


@pytest.mark.parametrize(
    ("common", "switch", "number"),
    [
        ([], "serving.engine.host_prefill_s=0.02", _ttft),
        ([], "serving.engine.host_decode_s=0.005", _itl),
        (["cluster.decode_instances=1"], "serving.decode.max_requests=8", _ttft),
        (["cluster.decode_instances=1"], "serving.decode.kv_tokens=4000", _ttft),
        (["cluster.prefill_instances=1", "rps=60"], "serving.prefill.max_requests=1", _ttft),
        ([], "cluster.link.latency_s=0.1", _first_gap),
        (["cluster.link.bytes_per_s=1e9", "rps=60"], "cluster.link.streams=1", lambda record: -_first_gap(record)),
        ([], "gpu.power_limit_w=1000", _power),
    ],
)
def test_switching_it_raises(run: Run, common: list[str], switch: str, number: Callable[[RunRecord], float]) -> None:
    before, after = run("policy=static_max", *common), run("policy=static_max", *common, switch)
    assert number(after) > number(before)


def test_a_throttled_gpu_draws_its_limit_and_is_slower(run: Run) -> None:
    limited, free = (run("policy=static_max", f"gpu.power_limit_w={limit}", "rps=60") for limit in (300, 1000))
    assert _power(limited) == pytest.approx(300, rel=0.01)
    assert _power(free) > 400
    assert _ttft(limited) > _ttft(free) and _itl(limited) > _itl(free)


@pytest.mark.slow
def test_padding_makes_odd_batches_slower(run: Run) -> None:
    odd = ("trace=fixed", "trace.input_tokens=20", "trace.output_tokens=200", "cluster.decode_instances=1", "rps=80")
    odd += ("requests=400",)
    padded, bare = (run("policy=static_max", *odd, f"serving.engine.cuda_graph={on}") for on in ("true", "false"))
    assert _itl(padded) > _itl(bare)


def test_noise_spreads_iterations_around_the_same_median(run: Run) -> None:
    alone = ("policy=static_max", "rps=0.2", "requests=3", "duration_s=null")
    exact, noisy = run(*alone), run(*alone, "serving.latency_noise=0.1")
    spread = noisy.requests().max_itl_s / noisy.requests().mean_itl_s
    assert (spread > 1.05 * exact.requests().max_itl_s / exact.requests().mean_itl_s).all()
    assert _itl(noisy) == pytest.approx(_itl(exact), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("slower", ["nvml", "nvidia_smi"])
def test_slow_actuation_lags(run: Run, slower: str) -> None:
    tight: list[Any] = ["policy=voltana", "slo.ttft_ms=100", "rps=30"]
    assert _ttft(run(*tight, f"actuation={slower}")) > _ttft(run(*tight, "actuation=instant"))


def test_a_drift_slows_and_heats_from_its_time_on(run: Run) -> None:
    steady, drifting = (
        run("policy=static_max", "rps=10", "drift=slow_and_hot", f"drift.at_s={at}") for at in ("null", 3)
    )
    assert _itl(drifting) > _itl(steady)
    before, after = (
        (r.instances().query("batch_size == 0 and time_s > 3.5").power_w.min()) for r in (steady, drifting)
    )
    assert after == pytest.approx(before + 15)
    early = [r.instances().query("time_s < 2.5") for r in (steady, drifting)]
    assert (early[0].power_w.to_numpy() == early[1].power_w.to_numpy()).all()
