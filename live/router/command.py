"""`voltana-router`: the router as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.app.extras import require
from voltana.compiled import version
from voltana.errors import UserError
from voltana.live.router.settings import RouterSettings
from voltana.policies.balancers import RandomRouter, RoundRobin
from voltana.policies.build import shipped
from voltana.policies.ecoroute import EcoRoute
from voltana.prediction.ecopred import EcoPred
from voltana.section import parse
from voltana.state import Router, Slo

if TYPE_CHECKING:
    from voltana.live.router.fleet import Backend

GC_THRESHOLDS = (50_000, 50, 1000)
"""The stream path makes no cycles, so the collector rarely has anything to find."""
POLICIES = ("round_robin", "random", "ecoroute")


def main() -> None:
    """Run a router until SIGINT or SIGTERM. Exit status 2: bad input."""
    arguments = _parser().parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        require("voltana-router", "live")
        run(_serve(arguments))
    except UserError as error:
        print(f"voltana-router: error: {error}", file=sys.stderr)
        sys.exit(2)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run in uvloop where there is one, else in asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


def tune_gc() -> None:
    """Spare the collector everything made so far: its pauses would be the longest gaps in the streams."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="voltana-router", description="P/D router in front of SGLang servers")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    parser.add_argument("--prefill", nargs="+", required=True, metavar="URL,BOOTSTRAP_PORT")
    parser.add_argument("--decode", nargs="+", required=True, metavar="URL")
    parser.add_argument("--policy", choices=POLICIES, default="round_robin", help="for decode")
    parser.add_argument("--prefill-policy", choices=POLICIES[:2], default="round_robin")
    parser.add_argument("--predictor", type=Path, help="EcoPred (JSON, from voltana-fit), for ecoroute")
    parser.add_argument("--itl-ms", type=float, help="inter-token latency objective, for ecoroute")
    parser.add_argument("--levels-mhz", type=int, nargs="+", help="clocks of the what-if, for ecoroute")
    parser.add_argument("--seed", type=int, default=0, help="for random")
    for name, field in RouterSettings.model_fields.items():
        option, default = "--" + name.replace("_", "-"), field.default
        parser.add_argument(option, type=type(default), default=default, help=f"default: {default}")
    return parser


async def _serve(arguments: argparse.Namespace) -> None:
    from voltana.live.router.fleet import Backend
    from voltana.live.router.server import RouterServer

    settings = parse(RouterSettings, {name: getattr(arguments, name) for name in RouterSettings.model_fields})
    router = RouterServer(
        [_prefill(text) for text in arguments.prefill],
        [Backend(url) for url in arguments.decode],
        _policy(arguments.prefill_policy, arguments),
        _policy(arguments.policy, arguments),
        settings,
    )
    try:
        await router.start()
    except OSError as error:
        raise UserError(f"port: cannot listen at {settings.host}:{settings.port} ({error})") from error
    tune_gc()
    logging.getLogger("voltana.live.router").info("listening at %s", router.url)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await router.stop()


def _prefill(text: str) -> Backend:
    from voltana.live.router.fleet import Backend

    url, _, port = text.rpartition(",")
    if not url or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--prefill: found {text!r}, allowed: URL,BOOTSTRAP_PORT")
    return Backend(url, int(port))


def _policy(name: str, arguments: argparse.Namespace) -> Router:
    makers: dict[str, Callable[[], Router]] = {
        "round_robin": RoundRobin,
        "random": lambda: RandomRouter(arguments.seed),
        "ecoroute": lambda: _ecoroute(arguments),
    }
    return makers[name]()


def _ecoroute(arguments: argparse.Namespace) -> Router:
    for option in ("predictor", "itl_ms", "levels_mhz"):
        if getattr(arguments, option) is None:
            raise UserError(f"--{option.replace('_', '-')}: missing; ecoroute needs it")
    levels: Sequence[int] = arguments.levels_mhz
    predictor = EcoPred.load(arguments.predictor)
    return EcoRoute(
        Slo(0.0, arguments.itl_ms / 1000), sorted(levels), predictor, **shipped("router/ecoroute", levels_mhz=levels)
    )
