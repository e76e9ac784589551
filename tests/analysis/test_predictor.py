"""The figure of a predictor shows what it predicts, and every sample."""

import numpy as np
import pytest

from voltana.analysis.predictor import SHORT_TOKENS, draw
from voltana.prediction.fit import fit_ecopred
from voltana.prediction.profile import Sample

CLOCKS = (1005, 1200, 1410)
SAMPLES = [
    Sample("prefill", clock, 1, tokens, (0.01 + 3e-5 * tokens) * 1410 / clock, None)
    for clock in CLOCKS
    for tokens in (100, 500, 900, 4000, 20_000)
] + [
    Sample("decode", clock, batch, 300 * batch + more, (0.01 + 4e-5 * batch + 1e-8 * more) * 1410 / clock, None)
    for clock in CLOCKS
    for batch in (1, 2, 4, 100, 104)
    for more in (0, 700, 5000)
]


def test_lines_and_planes_are_drawn_with_their_samples() -> None:
    predictor = fit_ecopred(SAMPLES)
    whole, short, space = draw(predictor, SAMPLES).axes
    for axis, longest, count in ((whole, 20_000, 5), (short, 900, 3)):
        dots, lines = axis.lines[::2], axis.lines[1::2]
        assert [len(each.get_xdata()) for each in dots] == [count] * len(CLOCKS)
        for clock, line in zip(CLOCKS, lines, strict=True):
            assert line.get_label() == str(clock)
            assert line.get_xdata()[-1] == longest <= (SHORT_TOKENS if axis is short else longest)
            assert line.get_ydata()[-1] == pytest.approx(1e3 * predictor.prefill_s(longest, clock))
    dots = [each for each in space.collections if hasattr(each, "_offsets3d")]
    assert len(space.collections) - len(dots) == 2 * len(CLOCKS), "a plane for each batch bin"
    for clock, each in zip(CLOCKS, dots, strict=True):
        expected = [1e3 * s.latency_s for s in SAMPLES if s.phase == "decode" and s.clock_mhz == clock]
        assert np.sort(each._offsets3d[2]) == pytest.approx(np.sort(expected))
    assert "MAE" in whole.get_title() and "MAE" in space.get_title()
