"""The report in a real browser, headless: it draws itself without an error, and does what its buttons say."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from voltana.analysis.page.write import Options, page
from voltana.analysis.runs import load_runs

WriteRun = Callable[..., Path]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium here")]

USED = """
<script>
const said = {};
const rows = () => [...document.querySelectorAll("#numbers tbody tr")].map((row) => row.children[1].textContent);
said.canvases = document.querySelectorAll("canvas").length;
said.charts = document.querySelectorAll("#curves svg[role=group]").length;
document.querySelectorAll("#numbers thead button")[2].click();
said.sorted = rows().join();
said.aria = document.querySelectorAll("#numbers thead th")[2].getAttribute("aria-sort");
const before = document.documentElement.dataset.theme;
document.getElementById("theme").click();
said.themes = [before, document.documentElement.dataset.theme].join();
location.hash = "#run-0";
const first = document.getElementById("run-0");
first.open = true;
document.querySelector("[data-tip]").focus();
said.tip = document.getElementById("tip").textContent;
const unnamed = [...document.querySelectorAll("button, a, svg[role], canvas")].filter((each) => {
  const named = each.closest("[aria-label]") || each.textContent.trim();
  return !named;
});
said.unnamed = unnamed.length;
setTimeout(() => {
  said.details = first.querySelectorAll("svg[role=group]").length;
  document.querySelector("[aria-label='Zoom in']").click();
  document.body.dataset.said = JSON.stringify(said);
}, 300);
</script>
"""


def browse(path: Path, *flags: str) -> tuple[str, list[str]]:
    """The page as the browser has it in the end, and what its console said."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={path.parent / 'browser'}", *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(name="text")
def _text(tmp_path: Path, write_run: WriteRun) -> str:
    states = [
        (float(t), f"{phase}-0", (1005, 1410)[t % 2], t % 7, 100.0 + 50 * (t % 4))
        for phase in ("prefill", "decode")
        for t in range(4)
    ]
    for rps in (50, 75):
        for policy, energy in (("static_max", 200), ("voltana", 150)):
            write_run(f"runs/{policy}{rps}", policy, energy + rps, rps=rps, instances=states)
    return page(load_runs([tmp_path / "runs"]), Options())


def test_it_draws_itself_and_its_controls_work(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.html").write_text(text.replace("</body>", USED + "</body>"))
    shown, console = browse(tmp_path / "report.html", "--dump-dom")
    assert console == []
    assert 'data-drawn="yes"' in shown
    found = re.search(r'data-said="(.*?)"', shown)
    assert found
    said = found[1].replace("&quot;", '"')
    assert '"canvases":5' in said and '"charts":3' in said and '"unnamed":0' in said
    assert '"sorted":"static_max,static_max,voltana,voltana"' in said and '"aria":"descending"' in said
    assert '"themes":"light,dark"' in said
    assert "TTFT attainment" in said
    details = re.search(r'"details":(\d)', said)
    assert details and int(details[1]) >= 5


def test_a_mistake_in_a_page_would_be_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.html").write_text(text.replace("</body>", "<script>nowhere.at_all</script></body>"))
    _, console = browse(tmp_path / "report.html", "--dump-dom")
    assert len(console) == 1 and "nowhere is not defined" in console[0]


def test_it_prints(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.html").write_text(text)
    browse(tmp_path / "report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
