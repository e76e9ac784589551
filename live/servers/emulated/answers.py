"""What a client is answered: the JSON of SGLang's endpoints, whole or as a stream.

A chunk of a stream is a fixed head and tail of its request around the words that are new (`words.py`).
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

from voltana.live.servers.emulated.calls import Call, Choice
from voltana.live.servers.emulated.http import Reply, encode_json
from voltana.live.servers.emulated.words import FIRST_ID, LENGTH, WORDS, token_index
from voltana.live.servers.emulated.words import text as words_between

DONE = b"data: [DONE]\n\n"

Finish = tuple[str | None, str | int | None]
"""Why an answer ends, and what matched."""
UNFINISHED: Finish = (None, None)


def text(choice: Choice, start: int, end: int) -> str:
    """What the client gets of words `start` to `end` of an answer."""
    stop = choice.stop
    if stop is None or LENGTH * end <= stop.characters:
        return words_between(choice.prompt.seed, start, end)
    return words_between(choice.prompt.seed, start, end)[: max(0, stop.characters - LENGTH * start)]


def finish_of(choice: Choice, produced: int) -> tuple[str, str | int | None]:
    """Why an answer ends with so many tokens, and what matched."""
    if choice.stop is None or produced < choice.stop.tokens:
        return "length", None
    return "stop", choice.stop.matched


def output_logprobs(choice: Choice, start: int, end: int) -> list[list[Any]]:
    """SGLang's triples of log probability, token id and text, of output tokens."""
    return [
        [-1.0 - token_index(choice.prompt.seed, at) / 1000, FIRST_ID + token_index(choice.prompt.seed, at), None]
        for at in range(start, end)
    ]


def input_logprobs(call: Call, choice: Choice) -> list[list[Any]]:
    """The same of prompt tokens; the first of a prompt has no probability."""
    first = call.logprobs.input_from
    if first < 0:
        return []
    return [
        [None if at == 0 else -2.0 - at % 100 / 1000, FIRST_ID + at % len(WORDS), None]
        for at in range(first, choice.prompt.tokens)
    ]


class Answer:
    """The answer to one call, as its tokens come.

    Args:
        call: what was asked.
        reply: where it goes.
        stream_interval: tokens per chunk, after the first.
        prompt_logprobs: whether this server computed the prompt.
    """

    def __init__(self, call: Call, reply: Reply, stream_interval: int, prompt_logprobs: bool) -> None:
        self.call = call
        self._reply = reply
        self._interval = stream_interval
        self._prompt_logprobs = prompt_logprobs
        self._created = int(time.time())
        self._open = len(call.choices)
        self._sent = [0] * len(call.choices)
        self._made: list[tuple[list[str], list[int]]] = [([], []) for _ in call.choices]
        """Words and token ids of the choices, which /generate repeats in every chunk."""
        self._whole: list[Any] = [None] * len(call.choices)
        self._shells = [self._shell(choice) for choice in call.choices]
        if call.stream and call.kind == "generate":
            reply.begin_stream()

    @property
    def done(self) -> bool:
        """Whether nothing more can be said."""
        return self._reply.done

    def token(self, choice: Choice, produced: int, finished: bool) -> None:
        """An output token is made, the last one perhaps."""
        if self.call.stream:
            if finished or produced % self._interval == 0 or produced == 1:
                self._chunk(choice, produced, finished)
        elif finished:
            self._whole[choice.number] = self._result(choice, produced)
        if finished:
            self._open -= 1
            if not self._open:
                self._end()

    def fail(self, status: HTTPStatus, message: str) -> None:
        """The request has failed, all its choices with it."""
        reply, call = self._reply, self.call
        if not reply.streaming:
            reply.json(status, error_body(call.kind == "generate", status, message))
        elif call.kind == "generate":
            reason = {"type": "abort", "message": message, "status_code": status.value, "err_type": status.name}
            meta = {"id": call.choices[0].rid, "finish_reason": reason}
            self._event({"text": "", "output_ids": [], "meta_info": meta})
            self._close_stream()
        else:
            self._event({"error": error_body(False, status, message)})
            self._close_stream()

    # Streams

    def _chunk(self, choice: Choice, produced: int, finished: bool) -> None:
        reply = self._reply
        reply.begin_stream()
        start, self._sent[choice.number] = self._sent[choice.number], produced
        if self.call.kind == "generate":
            self._event(self._generated(choice, produced, finished))
        elif self.call.logprobs.output or (finished and self.call.kind == "completion"):
            self._event(self._delta(choice, start, produced, finished))
        else:
            head, tail = self._shells[choice.number]
            if start == 0 and self.call.kind == "chat":
                self._event(self._chat_event(choice, {"role": "assistant", "content": "", "reasoning_content": None}))
            reply.write(b"%b%b%b" % (head, text(choice, start, produced).encode(), tail))
        if finished and self.call.kind == "chat":
            nothing = {"role": None, "content": None, "reasoning_content": None}
            self._event(self._chat_event(choice, nothing, finish_of(choice, produced)))

    def _event(self, value: object) -> None:
        self._reply.write(b"data: %b\n\n" % encode_json(value))

    def _close_stream(self) -> None:
        self._reply.write(DONE)
        self._reply.end_stream()

    def _end(self) -> None:
        if not self.call.stream:
            self._reply.json(HTTPStatus.OK, self._body())
            return
        if self.call.usage and self.call.kind != "generate":
            self._event({**self._envelope(self.call.choices[0]), "choices": [], "usage": self._usage()})
        self._close_stream()

    def _shell(self, choice: Choice) -> tuple[bytes, bytes]:
        """What goes around the words of a chunk."""
        if not self.call.stream or self.call.kind == "generate":
            return b"", b""
        mark = "\0"
        if self.call.kind == "chat":
            event = self._chat_event(choice, {"role": None, "content": mark, "reasoning_content": None})
        else:
            event = self._completion_event(choice, mark, None, UNFINISHED)
        head, _, tail = encode_json(event).partition(b"\\u0000")
        return b"data: " + head, tail + b"\n\n"

    # The JSON of each endpoint

    def _envelope(self, choice: Choice) -> dict[str, Any]:
        kinds = {"completion": "text_completion", "chat": "chat.completion"}
        name = kinds.get(self.call.kind, "") + (".chunk" if self.call.stream and self.call.kind == "chat" else "")
        return {"id": choice.rid, "object": name, "created": self._created, "model": self.call.model}

    def _completion_event(self, choice: Choice, words: str, logprobs: Any, finish: Finish) -> dict[str, Any]:
        body = {
            "index": choice.number,
            "text": words,
            "logprobs": logprobs,
            "finish_reason": finish[0],
            "matched_stop": finish[1],
        }
        return {**self._envelope(choice), "choices": [body], "usage": None}

    def _chat_event(
        self, choice: Choice, delta: dict[str, Any], finish: Finish = UNFINISHED, logprobs: Any = None
    ) -> dict[str, Any]:
        body = {
            "index": choice.number,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish[0],
            "matched_stop": finish[1],
        }
        return {**self._envelope(choice), "choices": [body], "usage": None}

    def _delta(self, choice: Choice, start: int, end: int, finished: bool) -> dict[str, Any]:
        words, logprobs = text(choice, start, end), self._openai_logprobs(choice, start, end)
        if self.call.kind == "completion":
            return self._completion_event(choice, words, logprobs, finish_of(choice, end) if finished else UNFINISHED)
        delta = {"role": "assistant" if start == 0 else None, "content": words, "reasoning_content": None}
        return self._chat_event(choice, delta, logprobs=logprobs)

    def _openai_logprobs(self, choice: Choice, start: int, end: int) -> Any:
        if not self.call.logprobs.output:
            return None
        triples = output_logprobs(choice, start, end)
        words = [WORDS[token_index(choice.prompt.seed, at)] for at in range(start, end)]
        if self.call.kind == "chat":
            return {
                "content": [
                    {"token": word, "bytes": list(word.encode()), "logprob": triple[0], "top_logprobs": []}
                    for word, triple in zip(words, triples, strict=True)
                ]
            }
        values = [triple[0] for triple in triples]
        return {"text_offset": [-1] * len(words), "token_logprobs": values, "tokens": words, "top_logprobs": None}

    def _generated(self, choice: Choice, produced: int, finished: bool) -> dict[str, Any]:
        """One result of /generate; its text is all that there is so far, as SGLang streams it."""
        call, meta = self.call, self._meta(choice, produced, finished)
        if call.logprobs.output:
            meta["input_token_logprobs"] = input_logprobs(call, choice) if self._prompt_logprobs else []
            meta["output_token_logprobs"] = output_logprobs(choice, 0, produced)
            meta["output_token_logprobs_length"] = produced
        words, ids = self._made[choice.number]
        for position in range(len(ids), produced):
            token = token_index(choice.prompt.seed, position)
            words.append(WORDS[token])
            ids.append(FIRST_ID + token)
        made = "".join(words) if choice.stop is None else "".join(words)[: choice.stop.characters]
        result = {"text": made, "output_ids": ids, "meta_info": meta}
        return {"index": choice.number, **result} if call.batched and call.stream else result

    @staticmethod
    def _meta(choice: Choice, produced: int, finished: bool) -> dict[str, Any]:
        kind, matched = finish_of(choice, produced)
        finish = {"type": kind, "length": produced} if matched is None else {"type": kind, "matched": matched}
        return {
            "id": choice.rid,
            "finish_reason": finish if finished else None,
            "prompt_tokens": choice.prompt.tokens,
            "weight_version": "default",
            "num_retractions": 0,
            "reasoning_tokens": 0,
            "completion_tokens": produced,
            "cached_tokens": 0,
        }

    def _result(self, choice: Choice, produced: int) -> Any:
        self._sent[choice.number] = produced
        if self.call.kind == "generate":
            return self._generated(choice, produced, True)
        logprobs = self._openai_logprobs(choice, 0, produced)
        words: dict[str, Any] = {"text": text(choice, 0, produced)}
        finish, matched = finish_of(choice, produced)
        if self.call.kind == "chat":
            message = {
                "role": "assistant",
                "content": words["text"],
                "reasoning_content": None,
                "tool_calls": None,
            }
            words = {"message": message}
        return {
            "index": choice.number,
            **words,
            "logprobs": logprobs,
            "finish_reason": finish,
            "matched_stop": matched,
        }

    def _body(self) -> Any:
        if self.call.kind == "generate":
            return self._whole if self.call.batched else self._whole[0]
        return {**self._envelope(self.call.choices[0]), "choices": self._whole, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        prompt, made = sum(choice.prompt.tokens for choice in self.call.choices), sum(self._sent)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + made,
            "completion_tokens": made,
            "prompt_tokens_details": None,
            "reasoning_tokens": 0,
        }


def error_body(generate: bool, status: HTTPStatus, message: str) -> dict[str, Any]:
    """The JSON of a refusal."""
    if generate:
        return {"error": {"message": message}}
    kind = {HTTPStatus.BAD_REQUEST: "BadRequestError"}.get(status, status.name)
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status.value}
