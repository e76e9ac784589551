"""The benchmark runs and counts right."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.router.measure import Bench, Load, contenders, cpu_s
from voltana.errors import UserError

pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@needs_compiler
def test_a_short_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Load(seconds=1.0, chunks=10, gap_ms=5, first_ms=5, chunk_bytes=304))
    direct = bench.run(None, 20, 3)
    (ours,) = contenders(None)
    routed = bench.run(ours, 20, 3)
    assert routed.sent == routed.completed == direct.sent == direct.completed > 5
    assert routed.chunks == direct.chunks == 10 * direct.sent
    assert routed.cpu_s > 0 == direct.cpu_s
    assert routed.rss_mb > 5
    assert 9 < direct.ttft_ms.p50 < 100
    assert 4 < direct.gap_ms.p50 < 7


def test_cpu_of_children_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\n"
    script = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
    script += "print(flush=True)\ntime.sleep(9)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01)
        assert cpu_s(process.pid) > 0.15
    finally:
        process.kill()
        process.communicate()


def test_without_a_compiler_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="cc or gcc"):
        Bench(tmp_path, Load(1, 1, 1, 1, 300))
