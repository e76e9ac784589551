"""One emulated server: ``python -m voltana.live.servers.emulated --config FILE.json``.

When it listens it prints a line of JSON with its ports, then serves until SIGTERM, SIGINT or, with `--owned`, the end
of its standard input, which comes even when the process that started it is killed; then nobody else can remove the
configuration file and its folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import signal
import sys
from pathlib import Path

import uvloop

from voltana.errors import UserError
from voltana.live.servers.emulated.config import ServerConfig, build_plant, load_config
from voltana.live.servers.emulated.roles import build_server

COLLECT_EVERY = 100_000
"""Allocations between two garbage collections. Little here is cyclic, and a pause delays every stream."""


async def serve(config: ServerConfig, owned: bool) -> None:
    """Serve until told to stop.

    Raises:
        UserError: a bad value in the configuration, or a port that is taken.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if owned:
        await loop.connect_read_pipe(lambda: _EndOfInput(stop), sys.stdin)
    server = build_server(config, build_plant(config))
    listener = await server.start()
    ports = {"name": config.name, "port": server.port, "bootstrap_port": server.bootstrap_port}
    print(json.dumps(ports), flush=True)
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 20, 20)
    await stop.wait()
    listener.close()
    server.close()


class _EndOfInput(asyncio.Protocol):
    """Sets an event when standard input ends."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()


def main() -> int:
    """Run a server; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m voltana.live.servers.emulated", description="Run one emulated SGLang server."
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="JSON file, see live/servers/emulated/config.py"
    )
    parser.add_argument(
        "--owned", action="store_true", help="stop when standard input ends, and remove FILE and its folder"
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    try:
        uvloop.run(serve(load_config(arguments.config), arguments.owned))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        if arguments.owned:
            arguments.config.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other servers' files are still in it
                arguments.config.parent.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
