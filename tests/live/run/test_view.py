"""The terminal view shows what there is, and nothing where nothing is known."""

from collections import Counter
from io import StringIO

from rich.console import Console

from voltana.live.run.view import LINE_EVERY_S, View
from voltana.live.telemetry.message import IDLE


class Progress:
    def __init__(self) -> None:
        self.completed, self.ttft_met, self.itl_met, self.open, self.ended = 8, 6, 8, 3, 10
        self.failures = Counter({"gone": 2})
        self.met = Counter({"prefill-0": 6, "decode-0": 8})
        self.served = Counter({"prefill-0": 10, "decode-0": 8})


def test_a_row_per_instance() -> None:
    console = Console(file=StringIO(), width=100, record=True)
    loads = {"prefill-0": IDLE._replace(clock_mhz=1410, queued=2), "decode-0": IDLE._replace(batch_size=7)}
    meters = {"prefill-0": (1005, 73.2), "decode-0": (None, None), "decode-1": (None, None)}
    console.print(View(console, "voltana", 60.0).table(12.0, Progress(), loads, meters))
    rows = {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines() if "-" in line}
    assert rows["prefill-0"] == ["1005", "0", "0", "2", "73", "60.0", "%"]
    assert rows["decode-0"] == ["-", "7", "0", "0", "-", "100.0", "%"]
    assert rows["decode-1"] == ["-"] * 6


def test_elsewhere_a_line_now_and_then() -> None:
    out = StringIO()
    view = View(Console(file=out, width=100), "voltana", 60.0)
    for now_s in (0.0, 0.5, LINE_EVERY_S, LINE_EVERY_S + 0.5):
        view.show(now_s, Progress(), {}, {})
    view.end()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    said = "0 of 60 s: 8 completed, 2 failed; TTFT 60.0 %, ITL 80.0 % met"
    assert lines[0].split() == said.split(" ")
