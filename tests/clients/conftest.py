"""Load generators and clients of others, on emulated servers behind the router.

They run only where VOLTANA_CLIENTS names an environment that holds them, as `make test-clients` makes one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.policies.balancers import RoundRobin
from voltana.sim.run.compose import compose_sim

FOLDER = os.environ.get("VOLTANA_CLIENTS")
collect_ignore_glob = [] if FOLDER else ["test_*.py"]

TIMEOUT_S = 300.0

TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

words = Tokenizer(models.BPE())
words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
words.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 10, trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", model_max_length=100000)
tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
tokenizer.save_pretrained(sys.argv[1])
"""
"""Makes a tokenizer, so that none is downloaded."""


def program(name: str) -> str:
    return str(Path(FOLDER or "").absolute() / "bin" / name)


async def run(*command: str) -> str:
    """Run a program to its good end; returns what it said."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output[-5000:]
    return output


@asynccontextmanager
async def _served() -> AsyncIterator[RouterServer]:
    values = compose_sim()
    sections = {"gpu": values["gpu"], "model": values["model"], "engine": values["serving"]["engine"]}
    async with EmulatedCluster(2, 2, sections) as cluster:
        prefill = [Backend(each.url, each.bootstrap_port) for each in cluster.of("prefill")]
        decode = [Backend(each.url) for each in cluster.of("decode")]
        async with RouterServer(prefill, decode, RoundRobin(), RoundRobin()) as router:
            yield router


@pytest.fixture
def served() -> Callable[[Callable[[RouterServer], Coroutine[Any, Any, None]]], None]:
    """Run a test on a router of its own, before 2P2D."""

    def go(test: Callable[[RouterServer], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(TIMEOUT_S), _served() as router:
                await test(router)
                assert router.core.metrics.outcomes["failed"] == 0
                assert router.core.in_flight == 0

        asyncio.run(main())

    return go


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    asyncio.run(run(program("python"), "-c", TOKENIZER, folder))
    return folder
