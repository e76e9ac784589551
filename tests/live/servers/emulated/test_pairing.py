"""The two halves of a request, and what happens when one of them does not come, leaves or dies."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from voltana.live.servers import Endpoint
from voltana.live.servers.emulated.cluster import EmulatedCluster

Run = Callable[..., None]
LONG = {"input_ids": [1] * 50, "sampling_params": {"max_new_tokens": 5000}, "stream": True}


async def load(client: Any, endpoint: Endpoint) -> Any:
    return (await client.ask(endpoint, "GET", "/v1/loads")).json["loads"][0]


async def send(client: Any, endpoint: Endpoint, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(client.packed("POST", "/generate", body))
    return reader, writer


@pytest.mark.slow
@pytest.mark.parametrize("first", ["prefill-0", "decode-0"])
def test_a_half_waits_for_the_other(run: Run, client: Any, first: str) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        body = client.paired(cluster, {"text": "a b", "sampling_params": {"max_new_tokens": 3}})
        early = asyncio.create_task(client.ask(cluster.endpoints[first], "POST", "/generate", body))

        async def waits() -> bool:
            values = (await load(client, cluster.endpoints[first]))["disaggregation"]
            return 1 in (values.get("prefill_bootstrap_queue_reqs"), values.get("decode_transfer_queue_reqs"))

        await client.eventually(waits)
        assert not early.done()
        second = "decode-0" if first == "prefill-0" else "prefill-0"
        late = await client.ask(cluster.endpoints[second], "POST", "/generate", body)
        assert (await early).status == late.status == 200

    run(check)


@pytest.mark.slow
def test_a_half_without_the_other_times_out(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        body = client.paired(cluster, {"text": "a", "prompt": "a"})
        prefill, decode = cluster.endpoints.values()
        plain = client.ask(prefill, "POST", "/generate", body)
        openai = client.ask(decode, "POST", "/v1/completions", client.paired(cluster, {"prompt": "a", "stream": True}))
        streamed = client.ask(decode, "POST", "/generate", client.paired(cluster, {"text": "a", "stream": True}))
        failed, refused, stream = await asyncio.gather(plain, openai, streamed)
        assert failed.status == refused.status == 500
        assert "did not come" in failed.json["error"]["message"] and "did not come" in refused.json["message"]
        assert stream.status == 200, "its headers were sent before"
        assert stream.events[-1]["meta_info"]["finish_reason"]["type"] == "abort"
        assert (await client.ask(decode, "POST", "/flush_cache")).status == 200

    run(check, pair_timeout_s=0.2)


@pytest.mark.slow
def test_a_client_that_leaves_clears_its_request(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill, decode = cluster.endpoints.values()
        body = client.paired(cluster, LONG)
        reader, writer = await send(client, decode, body)
        await client.ask(prefill, "POST", "/generate", body)
        await reader.readuntil(b'completion_tokens":3')
        assert (await client.ask(decode, "POST", "/flush_cache")).status == 400, "a request is running"
        writer.close()

        async def idle() -> bool:
            values = await load(client, decode)
            return bool(values["num_total_reqs"] == 0 and values["num_total_tokens"] == 0)

        await client.eventually(idle)
        waiting = client.paired(cluster, LONG)
        _, abandoned = await send(client, decode, waiting)
        other = asyncio.create_task(client.ask(prefill, "POST", "/generate", client.paired(cluster, LONG)))
        await asyncio.sleep(0.02)
        abandoned.close()
        await client.eventually(idle)
        other.cancel()

    run(check)


@pytest.mark.slow
def test_a_decode_client_that_leaves_early_fails_the_prefill_half(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill, decode = cluster.endpoints.values()
        body = client.paired(cluster, {"input_ids": [1] * 16000, "sampling_params": {"max_new_tokens": 4}})
        _, writer = await send(client, decode, body)

        async def waits() -> bool:
            return bool((await load(client, decode))["disaggregation"]["decode_transfer_queue_reqs"] == 1)

        await client.eventually(waits)
        half = asyncio.create_task(client.ask(prefill, "POST", "/generate", body))

        async def computes() -> bool:
            return bool((await load(client, prefill))["num_running_reqs"] == 1)

        await client.eventually(computes)
        writer.close()
        got = await half
        assert got.status == 500 and "dropped" in got.json["error"]["message"]

    run(check)


@pytest.mark.slow
def test_a_dead_prefill_server_fails_what_waits_for_it(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill, decode = cluster.endpoints.values()
        waiting = asyncio.create_task(client.ask(decode, "POST", "/generate", client.paired(cluster, {"text": "a"})))

        async def waits() -> bool:
            return bool((await load(client, decode))["disaggregation"]["decode_transfer_queue_reqs"] == 1)

        await client.eventually(waits)
        os.kill(prefill.pid, signal.SIGKILL)
        got = await waiting
        assert got.status == 500 and "is gone" in got.json["error"]["message"]
        refused = await client.ask(decode, "POST", "/generate", client.paired(cluster, {"text": "a"}))
        assert refused.status == 500 and "prefill server" in refused.json["error"]["message"]

    run(check)


@pytest.mark.slow
def test_a_room_is_for_one(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill, decode = cluster.endpoints.values()
        for server in (prefill, decode):
            body = client.paired(cluster, {"text": "a"})
            _, writer = await send(client, server, body)

            async def waits(server: Endpoint = server) -> bool:
                return bool((await load(client, server))["num_total_reqs"] == 1)

            await client.eventually(waits)
            got = await client.ask(server, "POST", "/generate", body)
            assert got.status == 400 and "is taken" in got.json["error"]["message"]
            writer.close()

    run(check)


@pytest.mark.slow
def test_overload_is_a_backlog_that_is_worked_off(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill = cluster.endpoints["prefill-0"]
        body = {"input_ids": [1] * 1500, "sampling_params": {"max_new_tokens": 2}}
        requests = [asyncio.create_task(client.both(cluster, "/generate", body)) for _ in range(8)]

        async def backlog() -> bool:
            values = await load(client, prefill)
            return bool(values["num_running_reqs"] == 1 and values["num_waiting_uncached_tokens"] >= 3 * 1500)

        await client.eventually(backlog)
        answers = [answer for pair in await asyncio.gather(*requests) for answer in pair]
        assert [answer.status for answer in answers] == [200] * 16
        assert (await load(client, prefill))["num_total_tokens"] == 0

    run(check, prefill={"max_tokens": 1500})


@pytest.mark.slow
def test_a_full_queue_refuses(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill = cluster.endpoints["prefill-0"]
        writers = [(await send(client, prefill, client.paired(cluster, {"text": "a"})))[1] for _ in range(2)]

        async def full() -> bool:
            return bool((await load(client, prefill))["num_waiting_reqs"] == 2)

        await client.eventually(full)
        got = await client.ask(prefill, "POST", "/generate", client.paired(cluster, {"text": "a"}))
        assert got.status == 503 and "full" in got.json["error"]["message"]
        for writer in writers:
            writer.close()

    run(check, max_queued=2)
