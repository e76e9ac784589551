"""A P/D pair behind our router answers as one server does."""

import asyncio
import itertools
from typing import Any

import pytest

from voltana.live.servers.sglang.flags import FLAGS

PROMPT_TOKENS = (1, 17, 300, 5000)
"""The last one is longer than a chunk of prefill, so its KV cache goes over in parts."""


@pytest.mark.parametrize("tokens", PROMPT_TOKENS)
async def test_greedy_tokens_are_those_of_one_server(stack: Any, tokens: int) -> None:
    body = {"input_ids": stack.prompt(tokens), "sampling_params": stack.greedy(40)}
    alone = await stack.ask(stack.unified, "/generate", body)
    async with stack.router(1, 1) as router:
        pair = await stack.ask(router.url, "/generate", body)
    assert alone.status == pair.status == 200
    assert len(alone.json["output_ids"]) == 40
    assert pair.json["output_ids"] == alone.json["output_ids"]
    assert pair.json["text"] == alone.json["text"]
    assert pair.json["meta_info"]["prompt_tokens"] == tokens
    assert pair.json["meta_info"]["finish_reason"] == {"type": "length", "length": 40}


async def test_all_four_pairs_give_the_same_answer(stack: Any) -> None:
    body = {"input_ids": stack.prompt(50), "sampling_params": stack.greedy(10)}
    answers = []
    for prefill in stack.servers.prefill:
        for decode in stack.servers.decode:
            pair = {"bootstrap_host": "127.0.0.1", "bootstrap_port": prefill[1], "bootstrap_room": len(answers) + 1}
            legs = [stack.ask(url, "/generate", body | pair) for url in (prefill[0], decode)]
            answers.append((await asyncio.gather(*legs))[1].json["output_ids"])
    assert answers == [answers[0]] * 4


async def test_a_stream_grows_into_the_whole_answer(stack: Any) -> None:
    body = {"input_ids": stack.prompt(30), "sampling_params": stack.greedy(25)}
    async with stack.router() as router:
        whole = await stack.ask(router.url, "/generate", body)
        stream = await stack.ask(router.url, "/generate", body | {"stream": True})
    assert stream.is_done and stream.headers["content-type"].startswith("text/event-stream")
    texts = [event["text"] for event in stream.events]
    assert len(texts) > 5 and all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert texts[-1] == whole.json["text"]
    assert next(event["meta_info"]["completion_tokens"] for event in stream.events) == 1, "the first token is passed on"
    assert stream.events[-1]["meta_info"]["finish_reason"]["type"] == "length"


@pytest.mark.parametrize(
    ("path", "ask", "text_of"),
    [
        ("/v1/completions", {"prompt": "The fox"}, lambda choice: choice["text"]),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "The fox"}]},
            lambda choice: choice.get("message", choice.get("delta", {})).get("content") or "",
        ),
    ],
)
async def test_openai_endpoints(stack: Any, path: str, ask: dict[str, Any], text_of: Any) -> None:
    body = {"model": "tiny", "temperature": 0, "max_tokens": 12, "ignore_eos": True, **ask}
    alone = await stack.ask(stack.unified, path, body)
    async with stack.router() as router:
        whole = await stack.ask(router.url, path, body)
        stream = await stack.ask(router.url, path, body | {"stream": True})
    text = text_of(alone.json["choices"][0])
    assert text and text_of(whole.json["choices"][0]) == text
    assert stream.is_done
    assert "".join(text_of(event["choices"][0]) for event in stream.events if event["choices"]) == text
    assert whole.json["usage"] == alone.json["usage"]


async def test_a_batch_is_answered_in_order(stack: Any) -> None:
    prompts = [stack.prompt(20 + number, number) for number in range(4)]
    sampling = stack.greedy(8)
    async with stack.router() as router:
        batch = await stack.ask(router.url, "/generate", {"input_ids": prompts, "sampling_params": sampling})
        each = [
            await stack.ask(router.url, "/generate", {"input_ids": one, "sampling_params": sampling}) for one in prompts
        ]
    assert [answer["output_ids"] for answer in batch.json] == [answer.json["output_ids"] for answer in each]
    assert len({tuple(answer["output_ids"]) for answer in batch.json}) == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_both_legs_are_merged(stack: Any, stream: bool) -> None:
    asked = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2, "stream": stream}
    body = {"input_ids": stack.prompt(20), "sampling_params": stack.greedy(6), **asked}
    alone = await stack.ask(stack.unified, "/generate", body)
    async with stack.router() as router:
        pair = await stack.ask(router.url, "/generate", body)
    ours, theirs = ((answer.events[-1] if stream else answer.json)["meta_info"] for answer in (pair, alone))
    for name, count in (("input_token_logprobs", 20), ("output_token_logprobs", 6), ("input_top_logprobs", 20)):
        assert len(ours[name]) == len(theirs[name]) == count
    for name in ("input_token_logprobs", "output_token_logprobs"):
        assert [entry[1] for entry in ours[name]] == [entry[1] for entry in theirs[name]]
        pairs = [(a[0], b[0]) for a, b in zip(ours[name], theirs[name], strict=True) if a[0] is not None]
        assert len(pairs) >= len(ours[name]) - 1, "only the first token of a prompt has none"
        assert all(a == pytest.approx(b, abs=0.05) for a, b in pairs)


async def test_a_bad_request_is_refused_by_the_server_and_told_to_the_client(stack: Any) -> None:
    async with stack.router() as router:
        answer = await stack.ask(router.url, "/generate", {"input_ids": stack.prompt(9000), "sampling_params": {}})
        after = await stack.ask(
            router.url, "/generate", {"input_ids": stack.prompt(5), "sampling_params": stack.greedy(3)}
        )
    assert answer.status == 400 and b"9000" in answer.body
    assert after.status == 200


async def test_sglangs_own_client_works_through_the_router(stack: Any, environment: Any) -> None:
    """`sglang.bench_serving`, with random token ids, which need no download."""
    async with stack.router() as router:
        options = {
            "backend": "sglang-oai",
            "base-url": router.url,
            "dataset-name": "random-ids",
            "random-input-len": "40",
            "random-output-len": "10",
            "random-range-ratio": "1",
            "num-prompts": "20",
            "request-rate": "10",
            "tokenizer": str(environment.model),
            "model": str(environment.model),
        }
        process = await asyncio.create_subprocess_exec(
            str(environment.python),
            *("-m", "sglang.bench_serving"),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
            env={
                "SGLANG_USE_CPU_ENGINE": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONWARNINGS": "ignore",
                "HOME": "/nonexistent",
            },
            cwd=environment.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    rows = dict(line.split(":", 1) for line in output.splitlines() if line.count(":") == 1)
    assert int(rows["Successful requests"]) == 20, output
    assert int(rows["Total generated tokens"]) == 200, output


HELLO = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": "The fox", "sampling_params": {"n": 2, "max_new_tokens": 4}}),
        ("/v1/completions", {"model": "tiny", "prompt": "The fox", "n": 2, "max_tokens": 4}),
        ("/v1/chat/completions", {"model": "tiny", "messages": HELLO, "n": 2, "max_tokens": 4}),
    ],
)
async def test_several_samples_are_refused_at_once(stack: Any, path: str, body: dict[str, Any]) -> None:
    """One room serves all samples in stock SGLang, so a pair would never answer."""
    async with stack.router() as router:
        answer = await stack.ask(router.url, path, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported_n")
        one = {"sampling_params": {"n": 1, "max_new_tokens": 4}} if path == "/generate" else {"n": 1}
        assert (await stack.ask(router.url, path, body | one)).status == 200


async def test_other_endpoints_answer_as_a_server_does(stack: Any) -> None:
    async with stack.router() as router:
        model = (await stack.ask(stack.unified, "/v1/models")).json["data"][0]["id"]
        for path in (f"/v1/models/{model.lstrip('/')}", "/v1/models/none", "/flush_cache", "/health_generate"):
            alone, ours = await stack.ask(stack.unified, path), await stack.ask(router.url, path)
            assert ours.status == alone.status, path
        assert (await stack.ask(router.url, "/abort_request", {"rid": "none"})).status == 200
        assert (await stack.ask(router.url, "/generate", {"text": "a", "sampling_params": {"n": 1}})).status == 200


async def test_an_abort_ends_the_request_of_that_name(stack: Any) -> None:
    async with stack.router() as router:
        body = {"rid": "mine", "text": "The fox", "sampling_params": stack.greedy(2000), "stream": True}
        calling = await stack.call(router.url, "/generate", body)
        await calling.head()
        await calling.part()
        assert (await stack.ask(router.url, "/abort_request", {"rid": "mine"})).status == 200
        answer = await calling.rest()
        calling.close()
        assert answer.events[-1]["meta_info"]["finish_reason"]["type"] == "abort"


async def test_a_client_sees_the_first_token_when_decode_has_a_place(stack: Any) -> None:
    """So TTFT holds the wait for decode's batch, as in the simulator and the emulated servers; prefill is idle here."""
    places = FLAGS["cpu"]["max-running-requests"]

    def body(prompts: list[list[int]], tokens: int, **more: Any) -> dict[str, Any]:
        return {"input_ids": prompts, "sampling_params": stack.greedy(tokens), **more}

    prompts = [stack.prompt(10, seed) for seed in range(places + 1)]
    async with stack.router(1, 1) as router, stack.telemetry() as telemetry:
        others = asyncio.create_task(stack.ask(router.url, "/generate", body(prompts[1:-1], 400)))
        await stack.until(lambda: telemetry.latest["decode-0"].load.batch_size == places - 1)
        first = asyncio.create_task(stack.ask(router.url, "/generate", body(prompts[:1], 100)))
        await stack.until(lambda: telemetry.latest["decode-0"].load.batch_size == places)
        assert not first.done()
        late = await stack.call(router.url, "/generate", body(prompts[-1:], 5, stream=True))
        await late.head()
        await late.part()
        assert first.done() and not others.done(), "the first token came when a place was free, and no sooner"
        assert (await late.rest()).is_done and (await others).status == 200
        late.close()


async def test_prompts_of_many_bytes_pass(stack: Any) -> None:
    body = {"input_ids": [stack.prompt(4000, seed) for seed in range(8)], "sampling_params": stack.greedy(2)}
    async with stack.router() as router:
        answer = await stack.ask(router.url, "/generate", body)
    assert answer.status == 200
    assert [each["meta_info"]["prompt_tokens"] for each in answer.json] == [4000] * 8
