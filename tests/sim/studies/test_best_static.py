"""The search for the best fixed clocks, on a made-up cluster and on a simulated one."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate
from voltana.sim.studies.best_static import (
    Outcome,
    Pair,
    Search,
    as_overrides,
    compose,
    main,
    policy_yaml,
    simulate_pair,
    without_out,
)

CLOCKS = tuple(range(510, 1411, 15))


class MadeUp:
    """A cluster whose phases do not touch each other: energy has a sweet spot, attainment is lost below a clock."""

    def __init__(self, sweet: Pair, needed: Pair, slope: float = 1e-3) -> None:
        self.sweet, self.needed, self.slope = sweet, needed, slope
        self.runs: list[Pair] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[Outcome]:
        self.runs += pairs
        return [self.outcome(pair) for pair in pairs]

    def outcome(self, pair: Pair) -> Outcome:
        energies = [100 + ((clock - sweet) / 100) ** 2 for clock, sweet in zip(pair, self.sweet, strict=True)]
        met = [1 - self.slope * max(0, need - clock) for clock, need in zip(pair, self.needed, strict=True)]
        return Outcome(pair, met[0], met[1], max(0.0, met[0] + met[1] - 1), *energies)


clocks = st.sampled_from(CLOCKS)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.builds(Pair, clocks, clocks), st.builds(Pair, clocks, clocks), st.floats(0, 0.05), st.integers(1, 8))
def test_it_finds_what_trying_everything_finds(sweet: Pair, needed: Pair, tolerance: float, width: int) -> None:
    cluster = MadeUp(sweet, needed)
    found = Search(cluster, CLOCKS, tolerance, width=width).find()
    everything = [cluster.outcome(Pair(*pair)) for pair in product(CLOCKS, CLOCKS)]
    kept = [out for out in everything if out.joint_attainment >= found.floor]
    assert found.best.joint_attainment >= found.floor
    assert found.best.energy_j == pytest.approx(min(out.energy_j for out in kept), rel=2e-3)
    assert len(cluster.runs) == len(set(cluster.runs)) < 150 + width


def test_a_target_that_is_lower_than_the_tolerance_leaves_is_enough() -> None:
    cluster = MadeUp(Pair(510, 510), Pair(1200, 1200))
    strict, loose = (Search(cluster, CLOCKS, 0.0, target).find() for target in (None, 0.9))
    assert strict.best.pair == (1200, 1200)
    assert loose.floor == 0.9
    assert loose.best.energy_j < strict.best.energy_j


@pytest.mark.slow
def test_a_simulated_pair_is_the_run_of_the_policy_with_these_clocks(tmp_path: Path) -> None:
    setting = ("rps=20", "requests=60")
    out = simulate_pair(compose(setting), Pair(1005, 1200))
    summary = simulate(compose_sim(*as_overrides(Pair(1005, 1200)).split(), *setting), tmp_path)
    assert out.joint_attainment == summary["joint_attainment"]
    assert out.energy_j == pytest.approx(summary["energy_j"]["total"])


@pytest.mark.parametrize(
    ("override", "message"),
    [("policy=voltana", "policy=voltana: found a policy"), ("rpss=3", "rpss"), ("model=nonesuch", "nonesuch")],
)
def test_bad_overrides_are_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose([override])


@pytest.mark.slow
def test_the_command_finds_clocks_and_writes_a_policy_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy" / "mine.yaml"
    status = main(["--out", str(out), "--lowest", "1200", "rps=30", "requests=40"])
    assert status == 0
    policy = yaml.safe_load(out.read_text())
    pair = Pair(*(policy[f"{phase}_controller"]["clock_mhz"] for phase in ("prefill", "decode")))
    shown = capsys.readouterr()
    assert as_overrides(pair) in shown.out
    assert "[1] prefill 1410, decode 1410 MHz" in shown.err
    assert str(tmp_path) not in out.read_text()
    assert min(pair) >= 1200


def test_a_bad_value_ends_in_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lowest", "2000", "requests=1"]) == 2
    assert capsys.readouterr().err == "best_static: error: --lowest: found 2000, allowed: up to 1410 MHz\n"


def test_the_shipped_file_has_the_form_of_a_written_one() -> None:
    shipped = yaml.safe_load((Path(__file__).parents[3] / "conf/policy/best_static.yaml").read_text())
    out = Outcome(Pair(1275, 1110), 1, 1, 1, 1, 1)
    written = yaml.safe_load(policy_yaml(Search(lambda pairs: [out for _ in pairs], [1275], 0.01).find(), "command"))
    for phase in ("prefill", "decode"):
        shipped[f"{phase}_controller"] = written[f"{phase}_controller"]
    assert written == shipped


@pytest.mark.parametrize(
    ("rps", "pair"), [(50, (1035, 810)), (55.5, (1035, 810)), (75, (1245, 1080)), (200, (1260, 1170))]
)
def test_the_shipped_clocks_are_those_of_the_nearest_rate(rps: float, pair: tuple[int, int]) -> None:
    policy = compose([f"rps={rps}"])["policy"]
    assert (policy["prefill_controller"]["clock_mhz"], policy["decode_controller"]["clock_mhz"]) == pair


@pytest.mark.parametrize("words", [["--out", "x", "rps=5"], ["--out=x", "rps=5"], ["rps=5", "--out", "x"]])
def test_the_command_told_in_the_file_does_not_say_where_it_was_written(words: list[str]) -> None:
    assert without_out(words) == ["rps=5"]
