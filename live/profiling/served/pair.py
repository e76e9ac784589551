"""Loads for a prefill and a decode server: batches of random prompts, sent to both as a P/D router sends them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

from voltana.errors import UserError
from voltana.live.http import Connection, demand, demand_json
from voltana.live.servers import Endpoint

TOKEN_IDS = range(100, 1000)
"""Of the prompts: every model has these, and no special token is among them."""
ABOUT = ("version", "model_path", "tp_size", "attention_backend", "chunked_prefill_size", "max_prefill_tokens")
"""Of what a server tells of itself, that which changes a measurement."""


class Pair:
    """One prefill and one decode server.

    Args:
        prefill, decode: the servers.
        seed: of the prompts.
    """

    def __init__(self, prefill: Endpoint, decode: Endpoint, seed: int) -> None:
        self.prefill = prefill
        self.decode = decode
        self._draw = random.Random(seed)

    async def about(self) -> dict[str, Any]:
        """What the servers tell of themselves.

        Raises:
            UserError: one cannot be reached.
        """
        told = {}
        for phase, endpoint in (("prefill", self.prefill), ("decode", self.decode)):
            with contextlib.closing(Connection(endpoint.url)) as connection:
                info = await demand_json(connection, "/server_info")
            told[phase] = {key: info.get(key) for key in ABOUT}
        return told

    async def prefill_once(self, prompts: int, length: int, timeout_s: float) -> None:
        """Have a batch of prompts computed, and nothing else; returns when both servers have answered.

        Raises:
            UserError: a server refuses, hangs up or does not answer in time.
        """
        body = self._body(prompts, length, 1)
        legs = [Connection(endpoint.url) for endpoint in (self.prefill, self.decode)]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(demand(leg, "/generate", body, timeout_s=None) for leg in legs))
        except TimeoutError as error:
            what = f"{prompts} prompts of {length} tokens"
            raise UserError(f"profile.timeout_s: found {timeout_s:g}, in which {what} were not answered") from error
        finally:
            for leg in legs:
                leg.close()

    @contextlib.asynccontextmanager
    async def decoding(self, requests: int, length: int, output_tokens: int) -> AsyncIterator[asyncio.Future[Any]]:
        """Requests that decode as long as the `async with` lasts, or until they have made so many tokens.

        Gives a future that is done when they have ended, or fails with a `UserError` when a server refuses.
        """
        body = self._body(requests, length, output_tokens)
        legs = [Connection(endpoint.url) for endpoint in (self.prefill, self.decode)]
        bodies = [body, body | {"stream": True}]
        ended = asyncio.gather(
            *(
                demand(leg, "/generate", each, timeout_s=None, discard=True)
                for leg, each in zip(legs, bodies, strict=True)
            )
        )
        try:
            yield ended
        finally:
            for leg in legs:
                leg.close()
            ended.cancel()
            await asyncio.wait([ended])
            if not ended.cancelled():
                ended.exception()

    def _body(self, prompts: int, length: int, output_tokens: int) -> dict[str, Any]:
        draw = self._draw
        return {
            "input_ids": [draw.choices(TOKEN_IDS, k=length) for _ in range(prompts)],
            "sampling_params": {"temperature": 0, "max_new_tokens": output_tokens, "ignore_eos": True},
            "bootstrap_host": [self.prefill.host] * prompts,
            "bootstrap_port": [self.prefill.bootstrap_port] * prompts,
            "bootstrap_room": [draw.randrange(2**63) for _ in range(prompts)],
        }
