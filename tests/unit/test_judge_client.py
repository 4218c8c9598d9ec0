"""The judge against a server that misbehaves: real HTTP, on this machine."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import sqlite3
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from recipes.tldr.stand_in_judge import FAULTS, StandIn, scores, serving
from saw.judge import Judge, JudgeOptions, prompt
from saw.judge.cache import Cache
from saw.judge.client import _retry_after
from saw.judge.options import JudgeError

KEY = "sk-very-secret-0123456789"


#: What only a time-out ends. Elsewhere the time-out is long: a busy machine is no fault.
SILENT = ("never_ends", "slow_drip")


def options(address: str, **more) -> JudgeOptions:
    quick = {"timeout": 30.0, "longest_wait": 0.3, "attempts": 4}
    return JudgeOptions.of({"model": "stand-in", "base_url": address, **quick, **more})


def fields(number: int) -> dict[str, str]:
    words = [f"w{number}", "a", "b", "c"]
    return {
        "reddit_text": f"Post {number}.",
        "human_summary": " ".join(words),
        "model_summary": " ".join(words[: number % 5] + ["x"] * (number % 3)),
    }


def expected(judge: Judge, number: int) -> dict[str, float]:
    return {name: float(score) for name, score in scores(prompt.fill(judge.template, fields(number))).items()}


def ask(judge: Judge, *numbers: int) -> list:
    async def all_at_once():
        verdicts = await asyncio.gather(*(judge.score(fields(number)) for number in numbers))
        await judge.close()
        return verdicts

    return asyncio.run(all_at_once())


def test_right_answers_with_their_cost():
    stand_in = StandIn()
    with serving(stand_in) as address:
        judge = Judge(options(address, input_price=0.5, output_price=3.0))
        (verdict,) = ask(judge, 4)
    assert verdict.scores == expected(judge, 4) == {"quality": 10.0, "conciseness": 9.0}
    assert (verdict.requests, verdict.cached, verdict.fault) == (1, False, None)
    assert (verdict.input_tokens, verdict.output_tokens) == (400, 30)
    assert verdict.dollars == pytest.approx((400 * 0.5 + 30 * 3.0) / 1e6)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ends_as_missing_and_is_written_down(fault, tmp_path):
    stand_in = StandIn(faults={fault: 1.0})
    with serving(stand_in) as address:
        timeout = 0.5 if fault in SILENT else 30.0
        judge = Judge(options(address, attempts=2, timeout=timeout, faults=str(tmp_path / "faults.jsonl")))
        (verdict,) = ask(judge, 1)
    assert all(math.isnan(score) for score in verdict.scores.values())
    assert verdict.fault
    answered = fault in ("truncated", "not_json", "wrong_type", "out_of_range")
    assert verdict.requests == 2  # asked again once with the fault named, or attempted as often as allowed
    assert stand_in.counts[fault] == 2
    (line,) = (tmp_path / "faults.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert written["fault"] == verdict.fault
    assert len(written["replies"]) == (2 if answered else 0)
    assert written["fields"]["reddit_text"] == "Post 1."


def test_a_faulty_reply_is_shown_to_the_judge_with_its_fault():
    seen = []

    class Twice(StandIn):
        async def answer(self, request):
            seen.append((await request.json())["messages"])
            return await super().answer(request)

    stand_in = Twice(faults={"not_json": 1.0})
    with serving(stand_in) as address:
        ask(Judge(options(address)), 1)
    assert [len(messages) for messages in seen] == [1, 3]
    assert "could not be used: there is no JSON object" in seen[1][2]["content"]


def test_refusals_are_not_repeated():
    from aiohttp import web

    class Refusing(StandIn):
        async def answer(self, request):
            self.counts["refused"] += 1
            return web.json_response({"error": {"message": "blocked"}}, status=400)

    stand_in = Refusing()
    with serving(stand_in) as address:
        (verdict,) = ask(Judge(options(address)), 1)
    assert stand_in.counts["refused"] == 1
    assert "HTTP 400" in verdict.fault
    assert "blocked" in verdict.fault


def test_an_endless_body_is_cut_off():
    from aiohttp import web

    class Endless(StandIn):
        async def answer(self, request):
            response = web.StreamResponse()
            await response.prepare(request)
            with suppress(ConnectionError):
                while True:
                    await response.write(b" " * 2**16)
            return response

    with serving(Endless()) as address:
        (verdict,) = ask(Judge(options(address, attempts=1)), 1)
    assert "larger than 1048576 bytes" in verdict.fault


def test_retry_after_is_waited_for(monkeypatch):
    waits = []
    wait = Judge._wait
    monkeypatch.setattr(Judge, "_wait", lambda self, state: waits.append(wait(self, state)) or waits[-1])
    with serving(StandIn(faults={"429_retry_after": 1.0})) as address:
        ask(Judge(options(address, attempts=3, longest_wait=5.0)), 1)
        ask(Judge(options(address, attempts=2, longest_wait=0.1)), 2)
    assert len(waits) == 5  # tenacity also asks after the last attempt of each, and does not wait then
    assert all(0.2 <= seconds <= 0.33 for seconds in waits[:3])  # what the server asks for, and a little chance
    assert waits[3] == 0.1  # but no longer than the options allow


@pytest.mark.parametrize(("header", "low", "high"), [("3", 3, 3), ("soon", None, None), ("inf", None, None)])
def test_retry_after_as_seconds(header, low, high):
    assert retry_after(header) == low == high


def test_retry_after_as_a_date():
    later = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert 27 <= retry_after(later) <= 31


def retry_after(header):
    return _retry_after(SimpleNamespace(response=SimpleNamespace(headers={"retry-after": header})))


def test_a_storm_of_faults_leaves_every_sample_right_or_missing():
    stand_in = StandIn(latency=0.01, faults=dict.fromkeys(FAULTS, 0.3 / len(FAULTS)))
    with serving(stand_in) as address:
        judge = Judge(options(address, in_flight=32, timeout=1.0, attempts=6))
        verdicts = ask(judge, *range(400))
    for number, verdict in enumerate(verdicts):
        if verdict.fault is None:
            assert verdict.scores == expected(judge, number)
        else:
            assert all(math.isnan(score) for score in verdict.scores.values())
    right = sum(verdict.fault is None for verdict in verdicts)
    assert right > 0.95 * len(verdicts)
    assert sum(verdict.requests for verdict in verdicts) >= sum(stand_in.counts.values())
    assert stand_in.counts["right"] >= right
    assert stand_in.most_in_flight >= 16
    assert judge._asking == {}


def test_the_limit_on_requests_in_flight_holds():
    stand_in = StandIn(latency=0.02)
    with serving(stand_in) as address:
        ask(Judge(options(address, in_flight=4)), *range(40))
    assert stand_in.most_in_flight == 4


def test_the_limit_a_minute_holds():
    stand_in = StandIn()

    async def some(judge):
        tasks = [asyncio.ensure_future(judge.score(fields(number))) for number in range(8)]
        await asyncio.sleep(1.0)
        done = sum(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return done

    with serving(stand_in) as address:
        assert asyncio.run(some(Judge(options(address, per_minute=3)))) == 3
    assert sum(stand_in.counts.values()) == 3


def test_nothing_is_paid_twice(tmp_path):
    stand_in = StandIn(latency=0.05)
    cache = str(tmp_path / "cache.sqlite")
    with serving(stand_in) as address:
        judge = Judge(options(address, cache=cache, input_price=1.0))
        at_once = ask(judge, 1, 1, 1)
        assert sum(stand_in.counts.values()) == 1
        assert sum(verdict.dollars > 0 for verdict in at_once) == 1
        assert {tuple(verdict.scores.values()) for verdict in at_once} == {tuple(expected(judge, 1).values())}
        again = Judge(options(address, cache=cache))  # a run that is resumed
        (verdict,) = ask(again, 1)
        assert (verdict.cached, verdict.requests, verdict.dollars) == (True, 0, 0.0)
        assert sum(stand_in.counts.values()) == 1
        for other in (options(address, cache=cache, model="other"), options(address, cache=cache, temperature=0.7)):
            ask(Judge(other), 1)
        asyncio.run(Judge(options(address, cache=cache)).score(fields(1), variant=1))
    assert sum(stand_in.counts.values()) == 4


def test_a_missing_verdict_is_not_cached(tmp_path):
    cache = str(tmp_path / "cache.sqlite")
    with serving(StandIn(faults={"not_json": 1.0})) as address:
        ask(Judge(options(address, cache=cache)), 1)
    with serving(StandIn()) as address:
        (verdict,) = ask(Judge(options(address, cache=cache)), 1)
    assert verdict.fault is None


def test_several_processes_share_a_cache(tmp_path):
    path = tmp_path / "cache.sqlite"
    code = (
        "import sys; from pathlib import Path; from saw.judge.cache import Cache;"
        "cache = Cache(Path(sys.argv[1]));"
        "[cache.put(Cache.question(i), {'quality': i % 11}) for i in range(300)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    cache = Cache(path)
    assert [cache.get(Cache.question(i)) for i in range(300)] == [{"quality": i % 11} for i in range(300)]
    assert sqlite3.connect(path).execute("SELECT count(*) FROM verdicts").fetchone() == (300,)


def test_a_broken_cache_costs_money_but_no_verdict(tmp_path, caplog):
    with serving(StandIn()) as address:
        judge = Judge(options(address, cache=str(tmp_path / "cache.sqlite")))
        judge.cache.connection.execute("DROP TABLE verdicts")
        assert [verdict.fault for verdict in ask(judge, 1, 2)] == [None, None]
    assert caplog.text.count("the judge's cache does not work") == 1


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch, caplog):
    from aiohttp import web

    class Echoing(StandIn):
        async def answer(self, request):
            self.keys.add(request.headers["Authorization"])
            return web.json_response({"error": {"message": f"bad key {request.headers['Authorization']}"}}, status=401)

    monkeypatch.setenv("JUDGE_KEY", KEY)
    stand_in = Echoing()
    faults = tmp_path / "faults.jsonl"
    with serving(stand_in) as address, caplog.at_level("DEBUG", logger="saw"):
        chosen = options(address, api_key_env="JUDGE_KEY", faults=str(faults), cache=str(tmp_path / "cache"))
        judge = Judge(chosen)
        (verdict,) = ask(judge, 1)
    assert stand_in.keys == {f"Bearer {KEY}"}
    assert "bad key Bearer [key]" in verdict.fault
    assert KEY not in chosen.model_dump_json() + repr(chosen) + repr(verdict) + caplog.text
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()


def test_a_key_that_is_not_there_is_an_error_at_once(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(JudgeError, match="'JUDGE_KEY', and that environment variable is not set"):
        Judge(options("http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_flight": 0}, r"judge.in_flight: .*it is 0"),
        ({"base_url": "example"}, "judge.base_url: expected an address"),
        ({"prompt": "absent.txt"}, r"judge.prompt: there is no such file.*tldr.txt.*it is 'absent.txt'"),
        ({"modle": "x"}, "judge.modle"),
        ({"model": ""}, "judge.model"),
    ],
)
def test_wrong_options_are_named(wrong, message):
    with pytest.raises(JudgeError, match=message):
        JudgeOptions.of({"model": "m", "base_url": "http://x/v1", **wrong})


def test_a_judge_without_a_server_is_refused():
    with pytest.raises(JudgeError, match=r"judge.base_url is not set"):
        Judge(JudgeOptions.of({"model": "m"}))
