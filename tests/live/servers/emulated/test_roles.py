"""What a decode server tells its clients, and in which order."""

import json
from typing import Any

from voltana.live.servers.emulated.answers import Answer
from voltana.live.servers.emulated.calls import parse
from voltana.live.servers.emulated.config import ServerConfig, build_plant
from voltana.live.servers.emulated.http import Reply
from voltana.live.servers.emulated.roles import DecodeServer
from voltana.live.servers.emulated.server import Half
from voltana.section import parse as section
from voltana.sim.serving.job import Job
from voltana.traces import Request


class Written:
    """A connection that notes whose answer got bytes."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def write(self, data: bytes) -> None:
        if b"data: {" in data:
            self.log.append(self.name)

    def answered(self, keep_alive: bool) -> None:
        self.log.append(f"end of {self.name}")


def test_those_who_join_are_answered_before_those_whose_iteration_ended(sections: dict[str, Any]) -> None:
    config = section(ServerConfig, {**sections, "name": "decode-0", "phase": "decode"})
    server, log = DecodeServer(config, build_plant(config)), list[str]()
    driver = server.driver

    def submit(number: int, tokens: int) -> None:
        room = {"bootstrap_host": "h", "bootstrap_port": 1, "bootstrap_room": number}
        body = json.dumps(room | {"prompt": [1, 2], "max_tokens": tokens, "stream": True})
        call = parse("completion", body.encode(), "m", f"r{number}")
        reply = Reply(Written(f"{number}", log), True)  # type: ignore[arg-type]
        half = Half(call.choices[0], Answer(call, reply, 1, False), Job(Request(number, driver.now_s, 2, tokens)))
        half.job.owner = half
        half.job.prompt_done(driver.now_s)
        server.halves.add(half)
        driver.submit(half.job)

    submit(1, 3)
    submit(2, 2)
    driver.advance(driver.next_s)
    submit(3, 1)
    driver.advance(driver.next_s)
    first, second = ["1", "2", "1"], ["3", "end of 3", "1", "end of 1", "2", "end of 2"]
    assert log == first + second
    assert server.totals["generation_tokens"] == 6 and not server.halves
