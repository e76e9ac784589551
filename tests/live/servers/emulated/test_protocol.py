"""Emulated servers as clients and routers meet them."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from voltana.live.servers.emulated.cluster import EmulatedCluster

Run = Callable[..., None]
CHAT = {"messages": [{"role": "user", "content": "say something"}], "max_tokens": 5}


@pytest.mark.slow
def test_streams_and_whole_answers_agree(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        greet = {"prompt": "hello out there", "max_tokens": 5, "ignore_eos": True}
        _, whole = await client.both(cluster, "/v1/completions", greet)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        _, stream = await client.both(cluster, "/v1/completions", greet | options)
        *events, last = stream.events
        assert (whole.status, stream.status) == (200, 200)
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = whole.json["choices"][0]["text"]
        assert "".join(event["choices"][0]["text"] for event in events) == text and len(text.split()) == 5
        assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 4 + ["length"]
        assert last["choices"] == [] and last["usage"] == whole.json["usage"]
        assert last["usage"]["prompt_tokens"] == 3 and last["usage"]["completion_tokens"] == 5

        _, chat = await client.both(cluster, "/v1/chat/completions", CHAT)
        _, chunks = await client.both(cluster, "/v1/chat/completions", CHAT | {"stream": True})
        message = chat.json["choices"][0]["message"]
        deltas = [event["choices"][0]["delta"] for event in chunks.events]
        assert deltas[0]["role"] == message["role"] == "assistant"
        assert "".join(delta["content"] or "" for delta in deltas) == message["content"]
        assert chunks.events[-1]["choices"][0]["finish_reason"] == "length"

        sampling = {"max_new_tokens": 4, "temperature": 0}
        _, plain = await client.both(cluster, "/generate", {"input_ids": [3, 1, 4], "sampling_params": sampling})
        _, pieces = await client.both(
            cluster, "/generate", {"input_ids": [3, 1, 4], "sampling_params": sampling, "stream": True}
        )
        assert pieces.events[-1]["text"] == plain.json["text"], "SGLang streams all of the text so far"
        assert pieces.events[-1]["output_ids"] == plain.json["output_ids"]
        assert [event["meta_info"]["completion_tokens"] for event in pieces.events] == [1, 2, 3, 4]
        assert plain.json["meta_info"]["finish_reason"] == {"type": "length", "length": 4}

    run(check)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1, 4])
def test_a_stop_string_ends_answers_and_never_shows(run: Run, client: Any, interval: int) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        long = {"prompt": "hello out there", "max_tokens": 40}
        _, whole = await client.both(cluster, "/v1/completions", long)
        text = whole.json["choices"][0]["text"]
        stop = {"stop": [text[33:39]]}
        expected = text[: text.index(stop["stop"][0])]
        for path, body in (("/v1/completions", long), ("/v1/chat/completions", CHAT | {"max_tokens": 400})):
            _, plain = await client.both(cluster, path, body | stop)
            _, stream = await client.both(cluster, path, body | stop | {"stream": True})
            choice = plain.json["choices"][0]
            assert choice["finish_reason"] == "stop" and choice["matched_stop"] == stop["stop"][0]
            said = choice["text"] if "text" in choice else choice["message"]["content"]
            pieces = [event["choices"][0] for event in stream.events]
            parts = [each["text"] if "text" in each else each["delta"]["content"] or "" for each in pieces]
            assert "".join(parts) == said and stop["stop"][0] not in said
            assert [each["finish_reason"] for each in pieces if each["finish_reason"]] == ["stop"]
            assert path != "/v1/completions" or said == expected
        sampling = {"max_new_tokens": 40, **stop}
        native = {"text": "hello out there", "sampling_params": sampling}
        _, plain = await client.both(cluster, "/generate", native)
        _, stream = await client.both(cluster, "/generate", native | {"stream": True})
        assert plain.json["text"] == stream.events[-1]["text"] == expected
        meta = plain.json["meta_info"]
        assert meta["finish_reason"] == {"type": "stop", "matched": stop["stop"][0]}
        assert meta["completion_tokens"] == len(plain.json["output_ids"]) == 8

    run(check, stream_interval=interval)


@pytest.mark.slow
def test_prefill_answers_with_the_first_token(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        body = {"text": "one two three", "sampling_params": {"max_new_tokens": 6}, "return_logprob": True}
        first, second = await client.both(cluster, "/generate", body | {"logprob_start_len": 0})
        assert first.json["meta_info"]["completion_tokens"] == 1
        assert second.json["text"].startswith(first.json["text"])
        assert len(first.json["meta_info"]["input_token_logprobs"]) == 3
        assert first.json["meta_info"]["input_token_logprobs"][0][0] is None
        assert second.json["meta_info"]["input_token_logprobs"] == []
        assert len(second.json["meta_info"]["output_token_logprobs"]) == 6
        first, second = await client.both(cluster, "/generate", body | {"sampling_params": {"max_new_tokens": 1}})
        assert second.json["output_ids"] == first.json["output_ids"]

    run(check)


@pytest.mark.slow
def test_openai_logprobs(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        body = {"prompt": "a b", "max_tokens": 3, "logprobs": 1}
        _, whole = await client.both(cluster, "/v1/completions", body)
        _, stream = await client.both(cluster, "/v1/completions", body | {"stream": True})
        values = whole.json["choices"][0]["logprobs"]["token_logprobs"]
        streamed = [event["choices"][0]["logprobs"]["token_logprobs"][0] for event in stream.events]
        assert streamed == values and len(values) == 3
        _, chat = await client.both(cluster, "/v1/chat/completions", CHAT | {"logprobs": True})
        assert len(chat.json["choices"][0]["logprobs"]["content"]) == 5

    run(check)


@pytest.mark.slow
def test_batches(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        sampling = [{"max_new_tokens": 2}, {"max_new_tokens": 4}]
        body = {"text": ["first prompt", "second"], "sampling_params": sampling}
        first, second = await client.both(cluster, "/generate", body, prompts=2)
        assert [each["meta_info"]["completion_tokens"] for each in first.json] == [1, 1]
        assert [each["meta_info"]["completion_tokens"] for each in second.json] == [2, 4]
        _, stream = await client.both(cluster, "/generate", body | {"stream": True}, prompts=2)
        last = {event["index"]: event["text"] for event in stream.events}
        assert [last[0], last[1]] == [each["text"] for each in second.json]
        _, choices = await client.both(
            cluster, "/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 3}, prompts=2
        )
        assert [choice["index"] for choice in choices.json["choices"]] == [0, 1]
        assert choices.json["usage"]["completion_tokens"] == 6

    run(check)


@pytest.mark.slow
def test_stream_interval_sends_the_same_in_fewer_chunks(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        body = {"prompt": "a b", "max_tokens": 10}
        _, whole = await client.both(cluster, "/v1/completions", body)
        _, stream = await client.both(cluster, "/v1/completions", body | {"stream": True})
        texts = [event["choices"][0]["text"] for event in stream.events]
        assert [len(text.split()) for text in texts] == [1, 3, 4, 2]
        assert "".join(texts) == whole.json["choices"][0]["text"]

    run(check, stream_interval=4)


@pytest.mark.slow
def test_information(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill, decode = cluster.endpoints["prefill-0"], cluster.endpoints["decode-0"]
        for path in ("/health", "/health_generate"):
            assert (await client.ask(decode, "GET", path)).status == 200
        for path in ("/server_info", "/get_server_info"):
            info = (await client.ask(prefill, "GET", path)).json
            assert info["disaggregation_mode"] == "prefill"
            assert info["disaggregation_bootstrap_port"] == prefill.bootstrap_port
        assert (await client.ask(decode, "GET", "/model_info")).json["is_generation"] is True
        assert (await client.ask(decode, "GET", "/v1/models")).json["data"][0]["id"] == "emulated"
        loads = (await client.ask(decode, "GET", "/v1/loads?include=core,disagg")).json["loads"][0]
        assert loads["num_running_reqs"] == 0 and loads["max_total_num_tokens"] > 10_000
        metrics = (await client.ask(decode, "GET", "/metrics")).body.decode()
        assert 'sglang:num_running_reqs{model_name="emulated"} 0' in metrics
        assert (await client.ask(decode, "POST", "/flush_cache")).status == 200
        assert (await client.ask(decode, "GET", "/nothing")).status == 404
        assert (await client.ask(decode, "GET", "/generate")).status == 405

    run(check)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_refusals_reach_the_client(run: Run, client: Any, path: str) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        decode = cluster.endpoints["decode-0"]
        for body in (
            b"{",
            {"text": "a", "prompt": "a"},
            client.paired(cluster, {"input_ids": [1] * 2000, "prompt": [1] * 2000}),
        ):
            got = await client.ask(decode, "POST", path, body)
            assert got.status == 400
            error = got.json["error"] if path == "/generate" else got.json
            assert error["message"]
        reader, writer = await asyncio.open_connection(decode.host, decode.port)
        writer.write(b"nonsense\r\n\r\n")
        assert b" 400 " in await reader.read()
        writer.close()

    run(check, decode={"kv_tokens": 1500})


@pytest.mark.slow
def test_connections_are_kept_and_requests_on_them_answered_in_turn(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        decode = cluster.endpoints["decode-0"]
        reader, writer = await asyncio.open_connection(decode.host, decode.port)
        for _ in range(2):
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["object"] == "list"
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"{}")
        assert b" 400 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()

    run(check)
