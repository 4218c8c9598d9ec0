"""A Hub that does not answer costs one call, not half a minute for each file."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import pytest
import requests

from saw.machine import hub as the_hub

NAME = "Qwen/Qwen2.5-1.5B-Instruct"


@pytest.fixture
def server():
    """Serves HTTP with a status; returns its address."""
    servers = []

    def serve(status):
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_any_answer_is_one(server, status):
    the_hub.reach(server(status), limit=10)


@pytest.mark.parametrize("status", the_hub.UNAVAILABLE)
def test_a_proxy_that_reaches_nothing_is_no_answer(server, status):
    with pytest.raises(OSError, match=f"status {status}"):
        the_hub.reach(server(status), limit=10)


def test_a_server_that_accepts_and_says_nothing_has_its_limit():
    """Kind: a firewall that swallows what is sent. Either of two limits may be the first: ours, or that of requests."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(OSError, match=r"no answer within 0\.05 s|read timeout=0\.05"),
    ):
        the_hub.reach(f"http://127.0.0.1:{silent.getsockname()[1]}", limit=0.05)


def test_the_reason_comes_first_and_is_short():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OSError, match=r"^Failed to establish a new connection: .*refused") as error:
        the_hub.reach(f"http://127.0.0.1:{port}", limit=10)
    assert not isinstance(error.value, requests.ConnectionError)


def test_it_is_asked_once_and_only_for_a_name_of_its_own(hub, tmp_path):
    hub.answers(ConnectionError("no route"))
    assert the_hub.unreachable([str(tmp_path), None, 5, "runs/quickstart/model"]) is None
    assert hub.asked == []
    assert hub.is_offline() == (False, False)
    for _ in range(2):
        assert "no route" in the_hub.unreachable([NAME])
    assert len(hub.asked) == 1
    assert hub.is_offline() == (True, True)
    assert datasets.config.HF_HUB_OFFLINE  # imported before


def test_what_runs_on_other_machines_may_reach_it(hub):
    hub.answers(ConnectionError("no route"))
    the_hub.unreachable([NAME], children=False)
    assert hub.is_offline() == (False, True)


def test_a_user_who_is_offline_asks_nothing(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.answers(None)
    assert the_hub.unreachable([NAME]) == "HF_HUB_OFFLINE is set"
    assert hub.asked == []


@pytest.mark.parametrize("index", ["", "{", "[]", '{"weight_map": 5}'])
def test_an_index_that_is_cut_off_is_named(tmp_path, index):
    for name, text in {"config.json": "{}", "model.safetensors.index.json": index}.items():
        (tmp_path / name).write_text(text)
    found = the_hub.absent_files(lambda name: str(tmp_path / name) if (tmp_path / name).is_file() else None)
    assert found == ["a whole model.safetensors.index.json"]


def test_a_download_that_is_half_done_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (tmp_path / parts["a"]).write_text("weights")
    found = the_hub.absent_files(lambda name: str(tmp_path / name) if (tmp_path / name).is_file() else None)
    assert found == [parts["b"]]
