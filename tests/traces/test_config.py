"""Every YAML file builds its object; bad values end in one line."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from voltana.errors import UserError
from voltana.traces import request_stream
from voltana.traces.arrivals import Curve, Gamma, Poisson, Timestamps, Uniform
from voltana.traces.lengths import Fixed

CONF = Path(__file__).parents[2] / "conf"
ARRIVALS = sorted((CONF / "arrival").glob("*.yaml"))


def build(group: str, name: str, **overrides: Any) -> Any:
    with initialize_config_module("voltana.conf", version_base="1.3"):
        whole = compose("sim", overrides=[f"{group}={name}", "rps=5", "hydra/launcher=basic"])
    section = OmegaConf.merge(whole, {group: overrides})[group]
    return instantiate({key: value for key, value in section.items() if key != "name"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharegpt", "sharegpt_first_turns", "lmsys", "lmsys_arena", "lognormal", "fixed"])
def test_each_trace_file_builds_a_source(name: str) -> None:
    stream = request_stream(build("trace", name), Uniform(rate=5), duration_s=2, requests=None, seed=1)
    assert len(list(stream)) == 10


@pytest.mark.slow
def test_every_arrival_file_builds_a_process() -> None:
    built = [type(build("arrival", path.stem)) for path in ARRIVALS]
    assert built == [Curve, Gamma, Poisson, Timestamps, Uniform]


@pytest.mark.parametrize("path", [*ARRIVALS, *(CONF / "trace").glob("*.yaml")], ids=lambda path: path.stem)
def test_a_choice_is_recorded_under_the_name_of_its_file(path: Path) -> None:
    assert OmegaConf.load(path).name == path.stem


def test_the_models_tokenizer_ratio_is_used() -> None:
    lengths = build("trace", "sharegpt_first_turns")
    assert (lengths.input_scale, lengths.output_scale) == (0.8, 0.8)


def test_the_benchmark_sample_stretches_each_side() -> None:
    lengths = build("trace", "sharegpt")
    assert (lengths.input_scale, lengths.output_scale) == pytest.approx((0.8 * 1.47, 0.8 * 0.686))


def test_without_a_model_ratio_lengths_are_those_of_the_data() -> None:
    assert OmegaConf.load(CONF / "trace" / "lmsys.yaml").scale == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "name", "overrides", "message"),
    [
        ("arrival", "poisson", {"rate": -1}, "rps: found -1, allowed: a number > 0"),
        ("arrival", "uniform", {"rate": None}, "rps: found null, allowed: a number > 0"),
        ("arrival", "gamma", {"burstiness": 0}, "arrival.burstiness: found 0, allowed: a number > 0"),
        ("arrival", "timestamps", {"speedup": "x"}, "arrival.speedup: found 'x', allowed: a number > 0"),
        ("trace", "sharegpt", {"scale": 0.0}, "trace.scale: found 0.0, allowed: a number > 0"),
        (
            "trace",
            "sharegpt",
            {"table": "alpaca"},
            "trace.table: found 'alpaca', allowed: lmsys, lmsys_arena, sharegpt",
        ),
        (
            "trace",
            "lmsys",
            {"max_total_tokens": 1},
            "trace.max_total_tokens: found 1, allowed: null or an integer >= 2",
        ),
        ("trace", "lognormal", {"input_sigma": -0.5}, "trace.input_sigma: found -0.5, allowed: a number >= 0"),
        ("trace", "lognormal", {"output_max": 3}, "trace.output_max: found 3, allowed: an integer >= 4"),
        ("trace", "lognormal", {"input_mean": True}, "trace.input_mean: found True, allowed: a number > 0"),
        ("trace", "fixed", {"input_tokens": 1.5}, "trace.input_tokens: found 1.5, allowed: an integer >= 1"),
        ("trace", "fixed", {"geometric": "yes"}, "trace.geometric: found 'yes', allowed: null, input, output or both"),
        (
            "trace",
            "file",
            {},
            "trace.path: found null, allowed: a file ending in .csv, .csv.gz, .jsonl, .jsonl.gz",
        ),
        ("trace", "file", {"path": "no/such.csv"}, "trace.path: found 'no/such.csv', allowed: a file that exists"),
    ],
)
def test_a_bad_value_is_named_in_one_line(group: str, name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InstantiationException) as error:
        build(group, name, **overrides)
    assert isinstance(error.value.__cause__, UserError)
    assert str(error.value.__cause__) == message


def test_a_filter_that_nothing_meets_ends_in_an_error_not_in_a_hang() -> None:
    source = build("trace", "sharegpt", max_total_tokens=2)
    with pytest.raises(UserError, match=r"^trace\.max_total_tokens: found 2, allowed: a limit that some request meets"):
        next(request_stream(source, Poisson(rate=1), duration_s=1, requests=None, seed=1))


def test_fixed_is_fixed() -> None:
    stream = request_stream(
        Fixed(input_tokens=7, output_tokens=9), Uniform(rate=1), duration_s=5, requests=None, seed=1
    )
    assert {request[2:] for request in stream} == {(7, 9)}
