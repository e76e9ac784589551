"""Clocks of a configuration that follow the GPU."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.clock_words import in_mhz
from voltana.sim.calibration.kernels import load_gpu
from voltana.sim.run.compose import compose_sim

CONF = Path(__file__).parents[2] / "conf"
A100 = {"clock_min_mhz": 210, "clock_max_mhz": 1410, "clock_step_mhz": 15, "knee_mhz": 1165}
H100 = {"clock_min_mhz": 345, "clock_max_mhz": 1980, "clock_step_mhz": 15, "knee_mhz": 966.9}


@pytest.mark.parametrize(
    ("gpu", "word", "mhz"),
    [
        (A100, "max", 1410),
        (A100, "knee", 1155),
        (A100, 0.713, 1005),
        (A100, 1.0, 1410),
        (A100, "0.713..max", "1005..1410"),
        (A100, "knee..1410", "1155..1410"),
        (A100, [0.5, "knee", 1200], [705, 1155, 1200]),
        (H100, "knee", 960),
        (H100, 0.713, 1410),
        (H100, "knee..max", "960..1980"),
    ],
)
def test_a_word_is_a_clock_of_the_gpu(gpu: dict[str, Any], word: Any, mhz: Any) -> None:
    assert in_mhz({"x": {"levels_mhz": word}}, gpu) == {"x": {"levels_mhz": mhz}}


@pytest.mark.parametrize(
    "value", [1005, "1005..1410", None, True, 1, 0.0, 1.5, "high", "..max", [1005, "nonsense"], {}]
)
def test_everything_else_stays_for_the_policy_to_check(value: Any) -> None:
    assert in_mhz({"levels_mhz": value}, A100) == {"levels_mhz": value}


def test_only_clocks_are_words() -> None:
    section = {"margin": 0.5, "what": "max", "clock_mhz": "max", "parts": [{"floor_mhz": 0.5, "budget": 0.5}]}
    assert in_mhz(section, A100) == {**section, "parts": [{"floor_mhz": 705, "budget": 0.5}]}


def test_a_gpu_without_clocks_yet_leaves_all_words() -> None:
    assert in_mhz({"levels_mhz": ["knee", "max"]}, {"name": "auto"}) == {"levels_mhz": ["knee", "max"]}


@given(st.sampled_from([A100, H100]), st.floats(1e-6, 1.0))
def test_a_share_is_the_nearest_clock_the_gpu_has(gpu: dict[str, Any], share: float) -> None:
    mhz = in_mhz({"x_mhz": share}, gpu)["x_mhz"]
    clocks = range(gpu["clock_min_mhz"], gpu["clock_max_mhz"] + 1, gpu["clock_step_mhz"])
    assert mhz in clocks
    assert all(abs(mhz - share * clocks[-1]) <= abs(c - share * clocks[-1]) for c in clocks)


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100_sxm", "h200_sxm", "b200_sxm"])
@pytest.mark.parametrize("policy", [path.stem for path in (CONF / "policy").glob("*.yaml")])
def test_every_preset_has_clocks_of_the_gpu_it_runs_on(gpu: str, policy: str) -> None:
    values = compose_sim(f"gpu={gpu}", f"policy={policy}")
    clocks = set(load_gpu(CONF / "gpu" / f"{gpu}.yaml").clocks())
    told = [
        number for text in re.findall(r"_mhz': (\[.*?\]|[\d.]+)", str(values["policy"])) for number in _numbers(text)
    ]
    assert {clock for clock in told if clock > 100} <= clocks
    assert set(values["profile"]["clocks_mhz"]) <= clocks
    assert values["serving"]["name"] == "sglang_kernels"


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", text)]


def test_on_the_a100_the_presets_are_the_published_clocks() -> None:
    policy = compose_sim("policy=voltana")["policy"]
    for part in ("prefill_controller", "decode_controller", "decode_router"):
        assert policy[part]["levels_mhz"] == [1005, 1410]
    following = compose_sim("policy=voltana_next")
    assert following["policy"]["decode_controller"]["knee_mhz"] == 1155
    assert following["profile"]["clocks_mhz"] == [510, 705, 855, 1005, 1095, 1200, 1305, 1410]


def test_what_is_chosen_for_a_gpu_gives_way_to_what_is_typed() -> None:
    assert compose_sim("gpu=h100_sxm", "serving=sglang")["serving"]["name"] == "sglang"
