"""What others measure and ask with works through the router."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.clients.conftest import program, run
from voltana.live.router.server import RouterServer

Served = Callable[..., None]

OPENAI = """
import json, sys
import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
chat = dict(model="emulated", messages=[{"role": "user", "content": "say something"}], max_tokens=12)
words = dict(model="emulated", prompt="hello out there", max_tokens=12)
told = {"models": [model.id for model in client.models.list()]}

whole = client.chat.completions.create(**chat).choices[0]
stream = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
told["chat"] = whole.message.content
told["chat_stream"] = "".join(part.choices[0].delta.content or "" for part in stream if part.choices)
told["chat_usage"] = stream[-1].usage.completion_tokens

whole = client.completions.create(**words).choices[0]
told["text"] = whole.text
told["text_stream"] = "".join(part.choices[0].text for part in client.completions.create(**words, stream=True))
told["batch"] = [choice.index for choice in client.completions.create(**words | {"prompt": ["a", "b", "c"]}).choices]

logprobs = client.chat.completions.create(**chat, logprobs=True).choices[0].logprobs
told["chat_logprobs"] = len(logprobs.content)
told["text_logprobs"] = len(client.completions.create(**words, logprobs=1).choices[0].logprobs.token_logprobs)

stop = whole.text[14:19]
stopped = client.completions.create(**words, stop=[stop]).choices[0]
told["stop"] = [stopped.text, stopped.finish_reason, whole.text[: whole.text.index(stop)]]

refused = {
    "n": dict(n=2),
    "role": dict(messages=[{"role": "wizard", "content": "a"}]),
    "image": dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
}
for name, wrong in refused.items():
    try:
        client.chat.completions.create(**chat | wrong)
    except openai.BadRequestError as error:
        told[name] = str(error)
print(json.dumps(told))
"""


def test_the_openai_client(served: Served) -> None:
    async def check(router: RouterServer) -> None:
        told: dict[str, Any] = json.loads(await run(program("python"), "-c", OPENAI, router.url))
        assert told["models"] == ["emulated"]
        assert told["chat"] == told["chat_stream"] and len(told["chat"].split()) == told["chat_usage"] == 12
        assert told["text"] == told["text_stream"] and len(told["text"].split()) == 12
        assert told["batch"] == [0, 1, 2]
        assert told["chat_logprobs"] == told["text_logprobs"] == 12
        text, reason, expected = told["stop"]
        assert (text, reason) == (expected, "stop")
        assert "allowed: 1" in told["n"] and "wizard" in told["role"] and "image_url" in told["image"]

    served(check)


def test_aiperf(served: Served, tokenizer: str, tmp_path: Path) -> None:
    async def check(router: RouterServer) -> None:
        options = {
            "model": "emulated",
            "url": router.url,
            "endpoint-type": "chat",
            "request-count": "20",
            "concurrency": "4",
            "synthetic-input-tokens-mean": "30",
            "output-tokens-mean": "10",
            "tokenizer": tokenizer,
            "ui": "none",
            "output-artifact-dir": str(tmp_path),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        await run(program("aiperf"), "profile", "--streaming", *words)
        report = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
        assert report["request_count"]["avg"] == 20
        assert report["time_to_first_token"]["avg"] > 0
        assert not report.get("error_summary")

    served(check)


def test_guidellm(served: Served, tokenizer: str, tmp_path: Path) -> None:
    async def check(router: RouterServer) -> None:
        file = tmp_path / "report.json"
        options = {
            "backend": f"kind=openai_http,target={router.url},model=emulated",
            "profile": "kind=concurrent,streams=4",
            "constraint": "kind=max_requests,count=20",
            "tokenizer": f"kind=huggingface_auto,model={tokenizer}",
            "data": "kind=synthetic_text,prompt_tokens=30,output_tokens=10",
            "output": f"kind=json,path={file}",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        await run(program("guidellm"), "run", "--disable-progress", *words)
        totals = json.loads(file.read_text())["benchmarks"][0]["metrics"]["request_totals"]
        assert (totals["successful"], totals["errored"]) == (20, 0)

    served(check)
