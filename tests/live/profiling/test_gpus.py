"""A table's clock is one that was in force, not merely asked for."""

import asyncio
from pathlib import Path

import pytest

from voltana.errors import UserError
from voltana.live.clocks.control import ReplayControl
from voltana.live.profiling.served.command import _owned

RECORDING = """# gpu {"gpu":0,"uuid":"GPU-a","name":"A100","clocks_mhz":[1005,1410]}
time_s,gpu,power_w,energy_j,clock_mhz
0,0,100,0,1395
600,0,100,60000,1395
"""


def test_a_gpu_that_does_not_obey_is_not_profiled(tmp_path: Path) -> None:
    path = tmp_path / "gpus.csv"
    path.write_text(RECORDING)

    async def set_clocks() -> None:
        async with _owned(ReplayControl(path=str(path)), {"decode-0": [0]}) as make:
            gpus = make()
            await gpus.set_clock("decode-0", 1410)
            with pytest.raises(UserError, match="decode-0 was set to 1005 MHz and runs at 1395 MHz"):
                await gpus.set_clock("decode-0", 1005)
            await gpus.close()

    asyncio.run(set_clocks())
