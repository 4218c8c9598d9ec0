"""The judge: sends questions, retries, and never makes up a score."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

import saw.rewards.judge.prompt as prompt
from saw.rewards.judge.cache import Cache
from saw.rewards.judge.options import JudgeError, JudgeOptions
from saw.rewards.judge.replies import BadReply, parse, scores_of

logger = logging.getLogger(__name__)

#: Maximum bytes of a response; a judge's is a few thousand, but a broken server may never stop sending.
LARGEST = 2**20
#: Questions started per request slot, so that slots stay busy while other questions wait for a retry.
QUESTIONS_A_SLOT = 4
#: Maximum number of faults written to the file; the metrics count all of them.
FAULTS_KEPT = 200
#: Minimum length of a key that is removed from replies; a shorter one ("EMPTY", "1") may occur in any reply.
SECRET = 8
#: Maximum characters shown of a server's message.
SHOWN = 500
#: Values of ``finish_reason`` for a complete reply; OpenAI's is "stop", the rest are from other servers.
COMPLETE = ("", "stop", "stop_sequence", "end_turn", "eos", "eos_token", "complete", "completed")
#: Values of ``finish_reason`` for a reply that was cut off.
CUT = ("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length")


class Unanswered(RuntimeError):
    """A request that got no answer and should be retried."""


class Refused(RuntimeError):
    """A request that was refused; a retry would be refused too."""


@dataclass
class Verdict:
    """The outcome of one question.

    Attributes:
        scores (dict[str, float]): one per objective; all NaN if there is no verdict.
        fault (str | None): why there is no verdict.
        requests (int): number of requests, including retries.
        cached (bool): True if the answer was known, so no request was sent.
        seconds (float): from the question to the verdict.
        input_tokens (int): as counted by the server.
        output_tokens (int): as counted by the server.
        dollars (float): cost at the prices in the options.
        uncounted (int): replies for which the server did not report all token counts; their cost is unknown.
    """

    scores: dict[str, float]
    fault: str | None = None
    requests: int = 0
    cached: bool = False
    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    uncounted: int = 0


@dataclass
class _Reply:
    text: str | None
    finish_reason: str = ""
    refusal: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    def check(self, max_tokens: int) -> None:
        """Check that the reply is complete.

        Raises:
            BadReply: if it refused, was cut off or filtered.
        """
        reason = self.finish_reason.casefold().removeprefix("finish_reason_")
        if self.refusal:
            raise BadReply(f"the judge refused: {_shortened(self.refusal)}")
        if reason in CUT:
            raise BadReply(f"the reply was cut off (finish_reason {self.finish_reason!r}, max_tokens {max_tokens})")
        if "filter" in reason or "safety" in reason:
            raise BadReply(f"the reply was filtered by the server (finish_reason {self.finish_reason!r})")
        if reason not in COMPLETE:
            raise BadReply(f"the reply did not end normally (finish_reason {self.finish_reason!r})")


@dataclass
class _Tally:
    """Requests, tokens and replies of one question so far."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0
    replies: list[str] = field(default_factory=list)


class Judge:
    """Asks an OpenAI-compatible server for scores. Create one per process: it enforces the rate limits.

    Args:
        options (JudgeOptions): the server, the prompt and the limits.

    Raises:
        JudgeError: if the server or the key is not set, or the prompt cannot be filled in.
    """

    def __init__(self, options: JudgeOptions):
        if options.base_url is None:
            raise JudgeError("judge.base_url is not set, and verl serves no judge (reward.reward_model.enable)")
        self.options = options
        self._key = options.api_key()
        self.template = prompt.load(options.prompt_path)
        self.cache = Cache(Path(options.cache) if options.cache else None)
        self._client = openai.AsyncOpenAI(
            base_url=options.base_url, api_key=self._key or "none", max_retries=0, timeout=options.timeout
        )
        # Limit the number of started questions: otherwise a retry would queue behind every question not yet started.
        self._door = asyncio.Semaphore(QUESTIONS_A_SLOT * options.in_flight)
        self._slots = asyncio.Semaphore(options.in_flight)
        self._pace = AsyncLimiter(options.per_minute, 60.0) if options.per_minute else None
        self._asking: dict[str, asyncio.Task[Verdict]] = {}
        self._faults_written = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def score(self, fields: Mapping[str, str], variant: int = 0) -> Verdict:
        """Judge one text.

        Args:
            fields (Mapping[str, str]): values of the fields in the prompt's template.
            variant (int): a different number asks the same question again, for repeated evaluations.

        Returns:
            Verdict: with scores, or with NaN and a fault. Errors of the server never raise.
        """
        started = time.monotonic()
        options = self.options
        text = prompt.fill(self.template, fields)
        settings = [options.model, options.temperature, options.max_tokens, options.extra_body, variant]
        scale = [options.objectives, options.lowest, options.highest]
        question = Cache.question(options.server, settings, scale, text, dict(fields))
        known = self._known(question)
        if known is not None:
            return Verdict({name: float(score) for name, score in known.items()}, cached=True)
        task = self._asking.get(question)
        if task is not None:  # the same question is in flight: one answer serves both
            verdict = await asyncio.shield(task)
            seconds = time.monotonic() - started
            return Verdict(dict(verdict.scores), verdict.fault, cached=verdict.fault is None, seconds=seconds)
        task = asyncio.ensure_future(self._ask(question, text, fields))
        self._asking[question] = task
        try:
            verdict = await task
        finally:
            del self._asking[question]
        verdict.seconds = time.monotonic() - started
        return verdict

    def _known(self, question: str) -> dict[str, int] | None:
        """The cached scores; a question whose row is not a verdict is asked again."""
        kept, options = self.cache.get(question), self.options
        if kept is None:
            return None
        try:
            return scores_of(kept, options.objectives, options.lowest, options.highest)
        except BadReply:
            self.cache.forget(question)
            return None

    async def _ask(self, question: str, text: str, fields: Mapping[str, str]) -> Verdict:
        tally = _Tally()
        scores: dict[str, int] | None = None
        fault = None
        try:
            async with self._door:
                scores = await self._verdict(text, tally, fields)
            self.cache.put(question, scores)
        except (BadReply, Unanswered, Refused) as error:
            fault = self._without_key(str(error))
            self._write_fault(fault, tally, fields)
        options = self.options
        dollars = tally.input_tokens * options.input_price + tally.output_tokens * options.output_price
        return Verdict(
            scores={name: float(scores[name]) if scores else math.nan for name in options.objectives},
            fault=fault,
            requests=tally.requests,
            input_tokens=tally.input_tokens,
            output_tokens=tally.output_tokens,
            dollars=dollars / 1e6,
            uncounted=tally.uncounted,
        )

    async def _verdict(self, text: str, tally: _Tally, fields: Mapping[str, str]) -> dict[str, int]:
        """The scores; if a reply has none, the judge is shown the reply and the fault and asked once more."""
        messages = [{"role": "user", "content": text}]
        reply = await self._reply(messages, tally)
        try:
            return self._scores(reply, fields)
        except BadReply as fault:
            if reply.text:  # otherwise the question is repeated unchanged: some servers refuse an empty message
                again = f"Your reply could not be used: {fault}. Reply with the JSON object only, in the given format."
                messages.append({"role": "assistant", "content": reply.text[:2000]})
                messages.append({"role": "user", "content": again})
        return self._scores(await self._reply(messages, tally), fields)

    def _scores(self, reply: _Reply, fields: Mapping[str, str]) -> dict[str, int]:
        options = self.options
        reply.check(options.max_tokens)
        return parse(reply.text, options.objectives, options.lowest, options.highest, fields.values())

    async def _reply(self, messages: list[dict[str, str]], tally: _Tally) -> _Reply:
        """One answer, after at most ``options.attempts`` attempts; a waiting question holds no slot."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.options.attempts),
            wait=self._wait,
            retry=retry_if_exception_type(Unanswered),
            reraise=True,
        )
        reply: _Reply = await retrying(self._request, messages, tally)
        tally.input_tokens += reply.input_tokens or 0
        tally.output_tokens += reply.output_tokens or 0
        tally.uncounted += reply.input_tokens is None or reply.output_tokens is None
        tally.replies.append((reply.text or "")[:2000])
        return reply

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: as the server asks, or exponential backoff; both with random jitter."""
        error = state.outcome.exception() if state.outcome else None
        asked = getattr(error, "retry_after", None)
        backoff = wait_random_exponential(multiplier=0.5, max=self.options.longest_wait)(state)
        # with jitter, so that requests refused together do not come back together
        seconds = backoff if asked is None else asked + min(backoff, 0.1 * asked + 0.1)
        return min(seconds, self.options.longest_wait)

    async def _request(self, messages: list[dict[str, str]], tally: _Tally) -> _Reply:
        async with AsyncExitStack() as stack:
            if self._pace is not None:
                await stack.enter_async_context(self._pace)
            await stack.enter_async_context(self._slots)
            tally.requests += 1
            try:
                async with asyncio.timeout(self.options.timeout):
                    return await self._send(messages)
            except TimeoutError as error:
                raise Unanswered(f"no complete answer within {self.options.timeout:g} s") from error
            except openai.APIStatusError as error:
                text = f"HTTP {error.status_code}: {_shortened(self._without_key(_body(error)))}"
                if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
                    unanswered = Unanswered(text)
                    unanswered.retry_after = _retry_after(error)  # type: ignore[attr-defined]
                    raise unanswered from error
                raise Refused(text) from error
            except (openai.APIError, OSError, ValueError) as error:
                cause = f" ({error.__cause__})" if isinstance(error, openai.APIConnectionError) else ""
                text = _shortened(self._without_key(f"{error}{cause}"))
                raise Unanswered(f"{type(error).__name__}: {text}") from error

    async def _send(self, messages: list[dict[str, str]]) -> _Reply:
        options = self.options
        request = self._client.chat.completions.with_streaming_response.create(
            model=options.model,
            messages=messages,  # type: ignore[arg-type]
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            extra_body=options.extra_body or None,
        )
        body = bytearray()
        async with request as response:
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > LARGEST:
                    raise ValueError(f"the response is larger than {LARGEST} bytes")
        reply = _read(body.decode("utf-8", "replace"), self._without_key)
        if reply.text and len(self._key or "") >= SECRET:  # before a fault shows part of it
            reply.text = self._without_key(reply.text)
        return reply

    def _without_key(self, text: str) -> str:
        """The text without the key, which a server may repeat in its answer. Call this before shortening the text."""
        if self._key:
            for spelling in (self._key, json.dumps(self._key)[1:-1], urllib.parse.quote(self._key, safe="")):
                text = text.replace(spelling, "[key]")
        return text

    def _write_fault(self, fault: str, tally: _Tally, fields: Mapping[str, str]) -> None:
        logger.debug("no verdict: %s", fault)
        if self.options.faults is None or self._faults_written >= FAULTS_KEPT:
            return
        self._faults_written += 1
        short = {name: text[:500] for name, text in fields.items()}
        line = json.dumps({"time": time.time(), "fault": fault, "replies": tally.replies, "fields": short})
        path = Path(self.options.faults)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(self._without_key(line) + "\n")


def _read(body: str, hide: Callable[[str], str]) -> _Reply:
    """Read the body of a response.

    Args:
        body (str): the body.
        hide (Callable): removes secrets from a text that is shown.

    Raises:
        ValueError: if it is not a chat completion; the message shows it.
    """
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"the response is not valid JSON: {_shortened(hide(body))}") from None
    try:
        choice = completion["choices"][0]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        reason, usage = choice.get("finish_reason"), completion.get("usage")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"the response is not a chat completion: {_shortened(hide(body))}") from None
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the response's content is not text: {_shortened(hide(body))}")
    counts = usage if isinstance(usage, Mapping) else {}
    return _Reply(
        text=text,
        finish_reason=str(reason or ""),
        refusal=hide(str(refusal)) if refusal else None,
        input_tokens=_count(counts.get("prompt_tokens")),
        output_tokens=_count(counts.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    """A number of tokens; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if number and value >= 0 else None


def _body(error: openai.APIStatusError) -> str:
    """The server's explanation of an error; openai's own message only covers bodies in OpenAI's format."""
    response = error.response
    text = response.text if response.is_stream_consumed else str(error)
    return text if text.strip() else f"{response.reason_phrase} (the response is empty)"


def _shortened(text: str) -> str:
    """The beginning of a text, on one line and without the invisible parts of a web page."""
    text = re.sub(r"<!--.*?-->|<(style|script)\b.*?</\1\s*>", " ", text[: 100 * SHOWN], flags=re.I | re.S)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _retry_after(error: openai.APIStatusError) -> float | None:
    """The waiting time that the server asks for, in seconds (it may give a date); None if it asks for none."""
    header = error.response.headers.get("retry-after")
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
