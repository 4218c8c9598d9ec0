"""Sampling is what a recipe says, never what a server takes from the model's ``generation_config.json``."""

import argparse
import asyncio
import json
from contextlib import contextmanager
from types import SimpleNamespace

import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.common import sampling, serve
from recipes.common.sampling import Sampling
from recipes.tldr import evaluate as tldr
from recipes.toolrl import evaluate as toolrl
from saw.runs.process_tree import JobFailed
from tests.configs import compose

#: What vLLM and SGLang take from a model's folder if a request does not say it.
INHERITED = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"}
ASKED = [{"role": "user", "content": "x"}]


def sent(request: dict) -> dict:
    """The parameters in the body of a request."""
    return {**{key: value for key, value in request.items() if key != "extra_body"}, **request["extra_body"]}


def test_a_request_has_every_parameter():
    """None is left to the server, and the defaults have no effect."""
    body = sent(Sampling(temperature=0.5, max_tokens=7).request(3, ASKED))
    assert 0 <= body.pop("seed") < 2**32
    assert body == {
        **{"temperature": 0.5, "max_tokens": 7, "top_p": 1.0, "top_k": -1, "min_p": 0.0},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    }
    assert set(body) >= INHERITED


def test_two_requests_share_no_random_numbers():
    """Kind: with one seed for all requests, different questions get similar answers at temperature 1."""
    given = Sampling(temperature=1.0, max_tokens=1)
    other = [{"role": "user", "content": "y"}]
    seeds = [given.request(seed, messages)["seed"] for seed in (1, 2) for messages in (ASKED, other, [*ASKED, *other])]
    assert len(set(seeds)) == 6
    assert given.request(1, [dict(reversed(ASKED[0].items()))])["seed"] == seeds[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("max_tokens", 0)),
        *(("top_p", 0.0), ("top_p", 1.1), ("top_k", 0), ("top_k", -2), ("min_p", -0.1), ("min_p", 1.5)),
        *(("repetition_penalty", 0.0), ("presence_penalty", 3.0), ("frequency_penalty", float("nan"))),
    ],
)
def test_a_parameter_out_of_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}; expected "):
        Sampling(**{"temperature": 1.0, "max_tokens": 1, name: value})


def test_options_of_a_command_line_lead_to_the_same_parameters():
    """The evaluation passes its parameters to BFCL's environment on a command line."""
    parser = argparse.ArgumentParser()
    sampling.add_options(parser, temperature=1.0, max_tokens=5, why="x")
    assert sampling.from_options(parser, parser.parse_args([])) == Sampling(temperature=1.0, max_tokens=5)
    given = Sampling(
        temperature=0.001,
        max_tokens=9,
        top_p=0.8,
        top_k=20,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
    )
    for wanted in (given, Sampling(temperature=1e-7, max_tokens=1)):
        assert sampling.from_options(parser, parser.parse_args(wanted.options())) == wanted


def test_a_bad_option_ends_with_its_name(capsys):
    parser = argparse.ArgumentParser()
    sampling.add_options(parser, temperature=1.0, max_tokens=5, why="x")
    with pytest.raises(SystemExit):
        sampling.from_options(parser, parser.parse_args(["--max-tokens", "0"]))
    assert "--max-tokens is 0; expected at least 1" in capsys.readouterr().err


# ---------------------------------------------------------------- servers


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_evaluations_start_vllm_without_the_models_sampling(gpus, tmp_path, monkeypatch):
    commands = []

    def job(command, *arguments, **named):
        commands.append(command)
        raise JobFailed("not started")

    monkeypatch.setattr(serve, "Job", job)
    with pytest.raises(JobFailed), serve.server("model", tmp_path, gpus, ["--generation-config", "auto"]):
        pass
    (command,) = commands
    first = command.index("--generation-config")
    assert command[first + 1] == "vllm"
    assert command[-2:] == ["--generation-config", "auto"]  # the caller's own options have the last word


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("experiment", ["quickstart", "toolrl", "tldr"])
def test_trainings_start_vllm_without_the_models_sampling(experiment, platform):
    """The rollout of an experiment of each kind, on every platform."""
    rollout = compose(f"experiment={experiment}", f"platform={platform}").actor_rollout_ref.rollout
    assert rollout.engine_kwargs.vllm.generation_config == "vllm"
    if platform == "cpu":  # the platform's own engine options are still there
        assert rollout.engine_kwargs.vllm.kv_cache_memory_bytes == 268435456


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_judges_that_verl_serves_start_without_the_models_sampling(platform):
    config = compose("objectives=tldr", "judge=verl", f"platform={platform}", "reward.reward_model.model_path=x")
    assert config.reward.reward_model.rollout.engine_kwargs.vllm.generation_config == "vllm"


def test_verl_hands_engine_options_to_vllm():
    from verl.workers.rollout.vllm_rollout.utils import build_cli_args_from_config

    assert build_cli_args_from_config({"generation_config": "vllm"}) == ["--generation_config", "vllm"]


# ---------------------------------------------------------------- evaluations


class _Client:
    """Replaces the OpenAI client, and records the requests."""

    requests: list[dict] = []  # noqa: RUF012

    def __init__(self, **arguments):
        self.chat = SimpleNamespace(completions=self)

    async def create(self, model, messages, **request):
        self.requests.append(request)
        choice = SimpleNamespace(message=SimpleNamespace(content="A\u2028b\x85 c\u2029."))
        return SimpleNamespace(choices=[choice])


@contextmanager
def _no_server(*arguments):
    yield "http://127.0.0.1:9/v1"


@pytest.fixture
def summarising(tmp_path, monkeypatch):
    """``evaluate(arguments)`` of the summaries, without a server and without a judge."""
    monkeypatch.setattr(_Client, "requests", [])
    monkeypatch.setattr(openai, "AsyncOpenAI", _Client)
    monkeypatch.setattr(tldr, "server", _no_server)
    options = SimpleNamespace(objectives=("quality",), model="g", temperature=0.1, faults="f")
    monkeypatch.setattr(tldr, "judge_options", lambda *arguments: options)
    monkeypatch.setattr(tldr, "Judge", lambda options: SimpleNamespace(options=options))

    async def judge_all(judge, rows, summaries, variant):
        return [
            SimpleNamespace(scores={"quality": 5}, fault=None, requests=1, dollars=0.0, uncounted=0) for _ in summaries
        ]

    monkeypatch.setattr(tldr, "judge_all", judge_all)
    monkeypatch.setattr(tldr, "texts", lambda rows, summaries: {"summaries": summaries})
    rows = [
        {
            "prompt": [{"role": "user", "content": f"post {number}"}],
            "reward_model": {"ground_truth": "t"},
            "extra_info": {"id": f"t{number}", "post": "p"},
        }
        for number in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")

    def run(*options):
        command = ["evaluate", "--model", "m", "--data", str(tmp_path / "test.parquet")]
        monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path / "out"), "--runs", "2", *options])
        tldr.main()
        return json.loads((tmp_path / "out" / "evaluation.json").read_text())

    return run


def test_summaries_are_drawn_as_the_results_say(summarising):
    result = summarising("--top-p", "0.9")
    drawn = [sent(request) for request in _Client.requests]
    assert len({body.pop("seed") for body in drawn}) == 2 * 3  # no two share their random numbers
    assert drawn == [Sampling(temperature=1.0, max_tokens=512, top_p=0.9).as_dict()] * 6
    assert result["settings"]["sampling"] == Sampling(temperature=1.0, max_tokens=512, top_p=0.9).as_dict()
    # whatever characters a summary has, it is one summary
    assert [run["texts"]["summaries"] for run in result["runs"]] == [["A\u2028b\x85 c\u2029."] * 3] * 2


@pytest.mark.parametrize("other", [["--temperature", "0.5"], ["--repetition-penalty", "1.1"], ["--limit", "2"]])
def test_summaries_that_were_drawn_otherwise_are_not_taken_for_these(summarising, other):
    """Kind: the results would name other parameters than those that the folder's summaries were sampled with."""
    summarising()
    with pytest.raises(SystemExit, match="holds an evaluation with"):
        summarising(*other)
    summarising("--runs", "3")  # more of the same is no contradiction


def test_summaries_of_unknown_sampling_are_refused(summarising, tmp_path):
    summarising()
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.raises(SystemExit, match=r"no settings\.json with their settings"):
        summarising()


def test_summaries_of_other_posts_are_refused(summarising, tmp_path):
    summarising()
    rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "test.parquet")
    with pytest.raises(SystemExit, match="but not of the posts of"):
        summarising()


def test_options_for_vllm_reach_the_server(summarising, monkeypatch):
    """Kind: an option with dashes is taken for one of the evaluation's own."""
    served = []

    @contextmanager
    def server(*arguments):
        served.append(arguments)
        yield "http://127.0.0.1:9/v1"

    monkeypatch.setattr(tldr, "server", server)
    summarising("--vllm", "--max-model-len", "100")
    assert served[0][-1] == ["--max-model-len", "100"]


@pytest.mark.parametrize("option", ["--runs", "--threads", "--limit"])
@pytest.mark.parametrize("evaluate", [tldr, toolrl])
def test_a_number_below_one_is_named(evaluate, option, monkeypatch, capsys):
    data = ["--data", "d"] if evaluate is tldr else []
    monkeypatch.setattr("sys.argv", ["evaluate", "--model", "m", "--out", "o", *data, option, "0"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert f"{option} is 0; expected at least 1" in capsys.readouterr().err


def test_bfcl_is_asked_as_the_results_say(tmp_path, monkeypatch):
    """The evaluation passes all parameters and one seed per run to BFCL's environment, and records them."""
    asked = []

    def bfcl(what, folder, arguments, time_limit):
        if what == "generate":
            asked.append(arguments)
            (folder / "result").mkdir(parents=True)
            (folder / "result" / "BFCL_v4_multiple_result.json").write_text('{"id": "multiple_0", "result": "x"}\n')
        else:
            scores = {"package": "p", "categories": {"multiple": {"correct": 0, "total": 1}}, "package_overall": 0.0}
            (folder / "scores.json").write_text(json.dumps(scores))

    monkeypatch.setattr(toolrl, "bfcl", bfcl)
    monkeypatch.setattr(toolrl, "bfcl_python", lambda: tmp_path / "bin" / "python")
    command = ["evaluate", "--model", "m", "--server", "http://h/v1", "--out", str(tmp_path / "out"), "--runs", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--categories", "multiple", "--repetition-penalty", "1.1"])
    toolrl.main()
    wanted = Sampling(temperature=0.001, max_tokens=4096, repetition_penalty=1.1)
    for number, arguments in enumerate(asked, start=1):
        start = arguments.index("--temperature")
        assert arguments[start : start + len(wanted.options())] == wanted.options()
        assert arguments[arguments.index("--seed") + 1] == str(number)
        assert "--multi-turn-sentence" not in arguments
    settings = json.loads((tmp_path / "out" / "evaluation.json").read_text())["settings"]
    assert settings["sampling"] == wanted.as_dict()
    assert settings["multi_turn_sentence"] is False
    for other in (["--repetition-penalty", "1.2"], ["--repetition-penalty", "1.1", "--multi-turn-sentence"]):
        monkeypatch.setattr("sys.argv", [*command, "--categories", "multiple", *other])
        with pytest.raises(SystemExit, match="holds an evaluation with"):
            toolrl.main()


def test_the_client_sends_what_is_beyond_openais_own_parameters():
    """With the real client and a server that records the request's body."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    bodies = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(400)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        given = argparse.Namespace(sampling=Sampling(temperature=0.7, max_tokens=3), threads=1)
        row = {"prompt": ASKED}
        address = f"http://127.0.0.1:{httpd.server_port}/v1"
        with pytest.raises(openai.BadRequestError):
            asyncio.run(tldr.summarise([row], address, given, seed=4))
        httpd.shutdown()
    (body,) = bodies
    assert {key: value for key, value in body.items() if key not in ("model", "messages")} == {
        **given.sampling.as_dict(),
        "seed": given.sampling.request(4, ASKED)["seed"],
    }
