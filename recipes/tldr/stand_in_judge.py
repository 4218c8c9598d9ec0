"""A stand-in for an LLM judge: an OpenAI-compatible server that scores by a rule, with faults on request.

    python -m recipes.tldr.stand_in_judge --port 8901 [--latency 0.05] [--faults 0.3]

It is for rehearsals, tests and the benchmark, costs nothing and needs no key. Quality is the share of the reference's
words that the summary has; conciseness falls with words beyond the reference's. Do not train a real model on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web
from omegaconf import OmegaConf

from saw.rewards import JUDGE
from saw.runs.compose import CONFIGS

#: The rubric of the questions that it can answer, as options of a judge.
RUBRIC: Any = OmegaConf.to_container(OmegaConf.select(OmegaConf.load(CONFIGS / "objectives" / "tldr.yaml"), JUDGE))
#: What can go wrong; each was seen with a real judge.
FAULTS = (
    *("429", "429_retry_after", "500", "reset"),
    *("never_ends", "slow_drip", "truncated", "not_json", "wrong_type", "out_of_range"),
)


def scores(prompt: str) -> dict[str, int]:
    """Quality and conciseness of the summary in a prompt, 0 to 10."""
    texts = {tag: _words(prompt, tag) for tag in ("human_summary", "model_summary")}
    wanted, given = set(texts["human_summary"]), texts["model_summary"]
    quality = round(10 * len(wanted & set(given)) / max(len(wanted), 1))
    surplus = max(len(given) - len(texts["human_summary"]), 0)
    return {"quality": quality, "conciseness": max(0, 10 - surplus) if given else 0}


def _words(prompt: str, tag: str) -> list[str]:
    found = re.search(rf".*<{tag}>(.*?)</{tag}>", prompt, re.DOTALL)  # the last: the instructions name it too
    return re.findall(r"\w+", found.group(1).lower()) if found else []


class StandIn:
    """The server's state.

    Args:
        latency (float): seconds per answer.
        faults (Mapping[str, float]): fault of :data:`FAULTS` -> how often it occurs.
        seed (int): of the faults.
    """

    def __init__(self, latency: float = 0.0, faults: Mapping[str, float] | None = None, seed: int = 0):
        unknown = sorted(set(faults or {}) - set(FAULTS))
        if unknown:
            raise ValueError(f"no such fault: {', '.join(unknown)}; expected {', '.join(FAULTS)}")
        self.latency = latency
        self.faults = dict(faults or {})
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.keys: set[str] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One chat completion."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self.keys.add(request.headers.get("Authorization", ""))
            body = await request.json()
            prompt = body["messages"][0]["content"]
            (fault,) = self.rng.choices([*self.faults, "right"], [*self.faults.values(), 1 - sum(self.faults.values())])
            self.counts[fault] += 1
            await asyncio.sleep(self.latency)
            return await self._respond(request, fault, scores(prompt))
        finally:
            self.in_flight -= 1

    async def _respond(self, request: web.Request, fault: str, verdict: dict[str, int]) -> web.StreamResponse:
        content = json.dumps({name: {"score": score} for name, score in verdict.items()})
        match fault:
            case "429":
                return web.json_response({"error": {"message": "too many requests"}}, status=429)
            case "429_retry_after":
                headers = {"Retry-After": "0.2"}
                return web.json_response({"error": {"message": "too many requests"}}, status=429, headers=headers)
            case "500":
                return web.Response(text="out of order", status=500)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "never_ends":
                await asyncio.sleep(3600)
            case "slow_drip":
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                await response.prepare(request)
                with suppress(ConnectionError):  # the client has closed the connection
                    while True:
                        await response.write(b" ")
                        await asyncio.sleep(0.05)
                return response
            case "truncated":
                content = content[: len(content) // 2]
            case "not_json":
                content = "I would say that this is a very good summary."
            case "wrong_type":
                content = content.replace(f": {verdict['quality']}}}", ': "very good"}', 1)
            case "out_of_range":
                content = json.dumps({name: {"score": 11 + score} for name, score in verdict.items()})
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 400, "completion_tokens": 30, "total_tokens": 430}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response({"id": "0", "object": "chat.completion", "choices": [choice], "usage": usage})

    async def stats(self, request: web.Request) -> web.Response:
        """The number of answers by kind, and the peak number of concurrent requests."""
        return web.json_response({"counts": self.counts, "most_in_flight": self.most_in_flight})

    def application(self) -> web.Application:
        """The web application."""
        application = web.Application(client_max_size=2**24)
        application.router.add_post("/v1/chat/completions", self.answer)
        application.router.add_get("/stats", self.stats)
        return application


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Serve from a thread while the block runs.

    Yields:
        str: the address, ``http://127.0.0.1:PORT/v1``.
    """
    loop = asyncio.new_event_loop()
    ready: dict[str, int] = {}
    started, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        """Run the server on a free port until the block has ended."""
        runner = web.AppRunner(stand_in.application(), shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready["port"] = runner.addresses[0][1]
        started.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    started.wait(timeout=30)
    try:
        yield f"http://127.0.0.1:{ready['port']}/v1"
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(timeout=30)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds per answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that go wrong, all kinds equally")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faults = dict.fromkeys(FAULTS, arguments.faults / len(FAULTS))
    web.run_app(
        StandIn(arguments.latency, faults, arguments.seed).application(),
        host="127.0.0.1",
        port=arguments.port,
        handler_cancellation=True,  # a request whose client has gone is not in flight
        print=lambda *_: None,
    )


if __name__ == "__main__":
    main()
