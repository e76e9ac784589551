"""A table's clock is one that was in force, not merely asked for."""

import asyncio
from pathlib import Path

import pytest

from tests.live.owner import LocalOwner, SteadyGpu
from voltana.errors import UserError
from voltana.live.clocks.control import NvmlControl
from voltana.live.gpus.owned import OwnedGpus


def test_a_gpu_that_does_not_obey_is_not_profiled(tmp_path: Path) -> None:
    owner = LocalOwner(tmp_path, [SteadyGpu(0, (1005, 1410))])

    async def set_clocks() -> None:
        gpus = OwnedGpus(NvmlControl(socket=str(owner.socket)), {"decode-0": [0]}, "test", drives=False)
        await gpus.open()
        await gpus.apply("decode-0", 1410)
        with pytest.raises(UserError, match="decode-0 cannot be set to 1005 MHz: GPU 0: found clock 1395"):
            await gpus.apply("decode-0", 1005)
        await gpus.close()

    try:
        asyncio.run(set_clocks())
    finally:
        owner.stop()
