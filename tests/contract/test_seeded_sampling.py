"""The seeded agent loop on verl's own classes: what it sends to the server, and that verl finds it by its name."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")

import hydra
import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from saw.verl.names import SEEDED
from saw.verl.seeded_sampling import SeededSingleTurn, request_seed

QUESTION = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "2 + 2"}]


def sent(monkeypatch, seed=1, step=3, messages=QUESTION, sample=0, row=0):
    """The sampling parameters that the base class gets from a request."""
    got = []

    async def run(self, sampling_params, priority=0, **kwargs):
        got.append((sampling_params, priority, kwargs))

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    loop = SeededSingleTurn.__new__(SeededSingleTurn)
    loop.config = OmegaConf.create({"data": {"seed": seed}})
    given = {"temperature": 1.0}
    asyncio.run(loop.run(given, raw_prompt=messages, global_steps=step, session_id=sample, uid="random", index=row))
    ((parameters, _, kwargs),) = got
    assert given == {"temperature": 1.0}  # all samples of a prompt share this dict
    assert parameters["temperature"] == 1.0
    assert kwargs["raw_prompt"] == messages
    return parameters["seed"]


def test_a_request_has_the_same_seed_in_each_training_and_no_other_request_has_it(monkeypatch):
    first = sent(monkeypatch)
    assert first == sent(monkeypatch) == request_seed(1, QUESTION, 3, 0, 0)
    others = [
        sent(monkeypatch, seed=2),
        sent(monkeypatch, row=1),  # the same question twice in one step
        sent(monkeypatch, step=4),
        sent(monkeypatch, sample=1),
        sent(monkeypatch, messages=[QUESTION[0], {"role": "user", "content": "2 + 3"}]),
        sent(monkeypatch, messages=QUESTION[1:]),
    ]
    assert len({first, *others}) == 7


def test_a_seed_is_one_that_vllm_accepts():
    vllm = pytest.importorskip("vllm")
    for sample in range(64):
        seed = request_seed(1, QUESTION, 1, 0, sample)
        assert 0 <= seed < 2**63
        assert vllm.SamplingParams(seed=seed).seed == seed


def test_the_content_of_images_and_arrays_counts_and_nothing_that_changes_with_the_process():
    def seed(content):
        return request_seed(1, [{"role": "user", "content": [content]}], 1, 0, 0)

    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "red", "blue")]
    first, same, other = (seed({"type": "image", "image": image}) for image in images)
    assert first == same != other
    arrays = np.zeros((3, 5000))
    arrays[2, 2500] = 1
    first, same, other = map(seed, arrays)
    assert first == same != other
    assert seed({"type": "text", "text": "a"}) == seed({"text": "a", "type": "text"})
    with pytest.raises(TypeError, match="a message has object"):
        seed(object())


def test_verl_finds_the_loop_by_its_name():
    target = agent_loop._agent_loop_registry[SEEDED]["_target_"]
    assert hydra.utils.get_class(target) is SeededSingleTurn
    assert issubclass(SeededSingleTurn, agent_loop.AgentLoopBase)


def test_verl_gives_a_loop_what_the_seed_is_computed_from(monkeypatch):
    """The keys that ``run`` reads, from verl's own worker."""
    pytest.importorskip("transfer_queue")
    from verl.trainer.ppo.v1 import agent_loop_tq

    got = []

    async def run_agent_loop(self, sampling_params, *, trajectory, trace, session_id, **prompt):
        got.append({"session_id": session_id, **prompt})

    async def put(**_):
        pass

    worker_class = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    monkeypatch.setattr(worker_class, "_run_agent_loop", run_agent_loop)
    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", put)
    worker = worker_class.__new__(worker_class)
    rollout = SimpleNamespace(n=2, val_kwargs=SimpleNamespace(n=1))
    worker.config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout))
    prompt = {"uid": "u", "raw_prompt": QUESTION, "global_steps": 3, "index": 0}
    asyncio.run(worker._run_prompt(prompt, {}, {"validate": False}))
    assert [each["session_id"] for each in got] == [0, 1]
    assert all((each["global_steps"], each["raw_prompt"], each["index"]) == (3, QUESTION, 0) for each in got)
