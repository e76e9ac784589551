"""A predictor that is off is corrected while serving, and keeps its word about when it need not be asked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.policies.build import shipped
from voltana.policies.ecofreq_online import EcoFreqOnline, LatencyRatio
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import Decision, LoadSnapshot, Slo

CLOCKS = (700, 1400)
SLO = Slo(0.4, 0.05)
PREDICTOR = EcoPred(
    CLOCKS,
    [Line(0.0, 2e-4), Line(0.0, 1e-4)],
    [[Plane(0.02, 0.0, 2e-6)] * len(BIN_ENDS), [Plane(0.01, 0.0, 1e-6)] * len(BIN_ENDS)],
)


def controller(phase: str = "decode", **parameters: object) -> EcoFreqOnline:
    settings = {"levels_mhz": CLOCKS, "margin": 0.0, "confidence": None, "memory_s": 1.0, "settle_s": 0.0} | parameters
    return EcoFreqOnline(phase, SLO, CLOCKS, PREDICTOR, **shipped("frequency/ecofreq_online", **settings))  # type: ignore[arg-type]


class Server:
    """A decode server whose iterations take `slowdown` times the prediction."""

    def __init__(self, policy: EcoFreqOnline, slowdown: float, batch: int = 10, tokens: int = 10_000) -> None:
        self.policy, self.slowdown = policy, slowdown
        self.batch, self.tokens = batch, tokens
        self.clock_mhz, self.time_s, self.iterations = CLOCKS[0], 0.0, 0
        self.answer = Decision(CLOCKS[0])

    def load(self) -> LoadSnapshot:
        return LoadSnapshot(
            self.time_s, self.clock_mhz, self.batch, self.tokens, 0, 0, 0.0, 0.0, 1, 1, self.iterations, self.time_s
        )

    def step(self, grow: bool = False) -> None:
        self.answer = self.policy.decide(self.load())
        self.clock_mhz = self.answer.clock_mhz
        self.time_s += self.slowdown * PREDICTOR.decode_s(self.batch, self.tokens, self.clock_mhz)
        self.iterations += 1
        self.tokens += self.batch * grow


def test_a_true_predictor_stays_as_it_is() -> None:
    server = Server(controller(hold_s=0.0), slowdown=1.0)
    for _ in range(50):
        server.step()
    assert server.policy._ratio.safe == pytest.approx(1.0)
    assert server.clock_mhz == 700


@pytest.mark.parametrize("slowdown", [0.8, 1.15, 2.0])
def test_a_slower_machine_is_found_out(slowdown: float) -> None:
    server = Server(controller(hold_s=0.0), slowdown)
    for _ in range(400):
        server.step()
    assert server.policy._ratio.safe == pytest.approx(slowdown, rel=0.01)


def test_the_clock_follows_what_was_found_out() -> None:
    """40 ms predicted at 700 MHz, 50 ms allowed: fits until the machine turns 30 % slower."""
    server = Server(controller(hold_s=0.0), slowdown=1.0)
    for _ in range(20):
        server.step()
    assert server.clock_mhz == 700
    server.slowdown = 1.3
    for _ in range(100):
        server.step()
    assert server.clock_mhz == 1400


def test_nothing_is_learned_while_a_clock_settles() -> None:
    policy = controller(hold_s=0.0, settle_s=100.0)
    server = Server(policy, slowdown=1.5)
    server.clock_mhz = CLOCKS[1]
    for _ in range(50):
        server.step()
    assert policy._ratio.safe == 1.0


@given(st.lists(st.booleans(), max_size=60), st.floats(0.01, 1.0))
def test_being_asked_more_often_than_promised_changes_nothing(changes: list[bool], hold_s: float) -> None:
    """One controller is asked at every iteration, the other only when its promise has run out or the batch changed."""
    eager, lazy = Server(controller(hold_s=hold_s), 1.2), Server(controller(hold_s=hold_s), 1.2)
    for change in changes:
        for server in (eager, lazy):
            if change:
                server.batch += 1
                server.tokens += 500
        eager.step(grow=True)
        if change or not lazy.iterations or lazy.tokens >= lazy.answer.holds_below_tokens:
            lazy.step(grow=True)
        else:
            lazy.time_s += lazy.slowdown * PREDICTOR.decode_s(lazy.batch, lazy.tokens, lazy.clock_mhz)
            lazy.iterations += 1
            lazy.tokens += lazy.batch
        assert eager.answer == lazy.answer
        assert eager.policy._ratio.safe == lazy.policy._ratio.safe


@pytest.mark.parametrize(("tokens", "plain", "reserved"), [(500, 700, 700), (1050, 700, 1400), (2500, 1400, 1400)])
def test_below_the_knee_a_reserve_is_kept(tokens: int, plain: int, reserved: int) -> None:
    """1000 tokens take 200 ms at 700 MHz, which must leave half of the 400 ms free if it is below the knee."""
    load = LoadSnapshot(1.0, 700, 2, tokens, 0, 0, 0.0, 0.0, 3, tokens)
    assert controller("prefill").decide(load).clock_mhz == plain
    assert controller("prefill", knee_mhz=1400, reserve=0.49).decide(load).clock_mhz == reserved
    assert controller("prefill", knee_mhz=700, reserve=0.49).decide(load).clock_mhz == plain


@given(st.lists(st.floats(0.5, 2.0), min_size=50, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_margin_covers_the_stated_share(errors: list[float], confidence: float) -> None:
    ratio = LatencyRatio(memory_s=1e9, confidence=confidence)
    for error in errors:
        ratio.observe(error, 1.0, 1.0)
    recent = errors[-200:]
    covered = sum(error <= ratio.safe * (1 + 1e-6) for error in recent) / len(recent)
    assert covered >= confidence - 1e-9
    assert math.isfinite(ratio.safe)
