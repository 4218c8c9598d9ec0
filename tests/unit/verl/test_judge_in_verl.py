"""The judge as verl sees it: its settings, its metrics, and what becomes of a step without verdicts."""

import asyncio
import json
import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from saw.records import validation_samples
from saw.rewards.judge.options import JudgeOptions
from saw.verl import judge_actor, step_metrics
from saw.verl.config import ConfigError
from saw.verl.config_checks import check_config
from saw.verl.estimator import StepRewards
from saw.verl.reward_ranges import RewardRanges
from saw.verl.trainer import SAWTrainer, TooManyMissing
from saw.verl.weight_state import State
from tests.configs import compose

SECTION = "reward.custom_reward_function.reward_kwargs.judge"


@pytest.fixture(autouse=True)
def judge_url(monkeypatch):
    monkeypatch.setenv("JUDGE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def configuration(*overrides):
    return compose("experiment=tldr", "judge=server", *overrides)


def test_ranges_come_from_the_judge():
    config = configuration(f"{SECTION}.highest=5")
    assert RewardRanges.of(config, check_config(config)).at(0) == [(0.0, 5.0), (0.0, 5.0)]


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_a_key_that_is_not_there_stops_before_ray(name, monkeypatch):
    config = configuration(f"judge={name}")
    key = f"{name.upper()}_API_KEY"
    monkeypatch.delenv(key, raising=False)
    with pytest.raises(ConfigError, match=f"{SECTION}.api_key_env is '{key}'"):
        check_config(config)
    monkeypatch.setenv(key, "sk-hidden")
    assert check_config(config) is not None
    assert "sk-hidden" not in OmegaConf.to_yaml(config, resolve=True)


@pytest.mark.parametrize("value", [None, "", " "])
@pytest.mark.parametrize("named_by", ["RAY_ADDRESS", "ray_kwargs.ray_init.address", "ray start"])
def test_a_key_that_the_nodes_of_a_running_cluster_may_have_is_not_asked_of_the_driver(
    monkeypatch, caplog, named_by, value
):
    """Kind: one of three ways to name a cluster is ignored. The message names who must have the key."""
    address = "10.0.0.1:6379"
    found = address if named_by == "ray start" else None
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: found)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("GEMINI_API_KEY", value)
    config = configuration("judge=gemini")
    if named_by == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    if named_by.endswith("address"):
        OmegaConf.update(config, named_by, address, force_add=True)
    assert check_config(config) is not None
    assert f"{SECTION}.api_key_env is 'GEMINI_API_KEY'" in caplog.text
    assert address in caplog.text
    caplog.clear()
    monkeypatch.setenv("GEMINI_API_KEY", "sk-hidden")
    check_config(config)
    assert not caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{SECTION}.in_flight=0"], f"{SECTION}.in_flight: .*it is 0"),
        ([f"{SECTION}.base_url=null"], f"{SECTION}.base_url is not set, and verl serves no judge"),
        ([f"{SECTION}.objectives=[quality]"], "saw.objectives has 'conciseness', which the reward function does not"),
        (["saw.max_missing=2"], "saw.max_missing"),
    ],
)
def test_wrong_settings_stop_before_ray(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_config(configuration(*overrides))


RUBRIC = {"prompt": "tldr.txt", "objectives": ["quality", "conciseness"], "lowest": 0, "highest": 10}


@pytest.mark.parametrize("judge", ["gemini", "openai", "server", "verl"])
def test_the_rubric_comes_with_the_task_whichever_judge_it_is(judge):
    """Kind: a judge brings one task's rubric into another task."""
    own = OmegaConf.select(compose("objectives=toolrl", f"judge={judge}"), SECTION)
    assert not RUBRIC.keys() & own.keys()
    section = OmegaConf.select(compose("objectives=tldr", f"judge={judge}"), SECTION)
    assert {key: section[key] for key in RUBRIC} == RUBRIC


def test_a_task_without_a_judge_is_refused():
    with pytest.raises(ConfigError, match=r"judge\.model is not set.* judge=gemini"):
        check_config(compose("objectives=tldr"))


def test_a_judge_that_verl_serves_needs_no_address():
    config = configuration("judge=verl", "reward.reward_model.model_path=m")
    assert check_config(config) is not None
    options = judge_actor.options_of(config.reward.custom_reward_function.reward_kwargs.judge, router="10.0.0.1:80")
    assert (options.base_url, options.model) == ("http://10.0.0.1:80/v1", "m")


def info(seconds, cached=0.0):
    values = {"requests": 1.0, "input_tokens": 10.0, "output_tokens": 2.0, "dollars": 0.5, "cached": cached}
    return {"quality": 1.0, "judge_seconds": seconds} | {f"judge_{key}": value for key, value in values.items()}


def test_judge_metrics_by_hand():
    result = step_metrics.judge_metrics([info(1.0), info(3.0, cached=1.0)])
    assert result == {
        **{"judge/requests": 2.0, "judge/input_tokens": 20.0, "judge/output_tokens": 4.0, "judge/dollars": 1.0},
        **{"judge/hit_rate": 0.5, "judge/seconds/mean": 2.0, "judge/seconds/max": 3.0},
        "judge/seconds/p95": pytest.approx(2.9),
    }
    assert step_metrics.judge_metrics([{"format": 1.0}]) == {}


def trainer(tmp_path, step, max_missing=0.5) -> SAWTrainer:
    made = SAWTrainer.__new__(SAWTrainer)
    made.settings = SimpleNamespace(max_missing=max_missing, names=("quality", "conciseness"))
    made.config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}})
    made.global_steps = step
    made._dataloader_before = {"position": "before"}
    made.state = State()

    def save():
        folder = tmp_path / f"global_step_{made.global_steps}"
        folder.mkdir()
        torch.save({"position": "after"}, folder / "data.pt")

    made._save_checkpoint = save
    return made


def step_of(rewards) -> StepRewards:
    scored = torch.tensor([0, 1, 2, 3])
    return StepRewards(None, [], 1, None, torch.tensor(rewards), scored, scored)  # type: ignore[arg-type]


NAN = math.nan


def test_as_many_missing_as_allowed_pass(tmp_path):
    rewards = step_of([[NAN, 1.0], [NAN, 1.0], [1.0, NAN], [1.0, 1.0], [NAN, NAN]])  # the last row is padding
    trainer(tmp_path, step=3)._stop_if_too_many_are_missing(rewards)
    assert not list(tmp_path.iterdir())


def test_too_many_missing_save_the_step_before_with_its_data(tmp_path):
    made = trainer(tmp_path, step=3)
    rewards = step_of([[1.0, NAN], [1.0, NAN], [1.0, NAN], [1.0, 1.0]])
    with pytest.raises(TooManyMissing, match=r"step 3: 75.0% .* no reward 'conciseness', and saw.max_missing is 0.5"):
        made._stop_if_too_many_are_missing(rewards)
    assert made.global_steps == 3
    assert torch.load(tmp_path / "global_step_2" / "data.pt") == {"position": "before"}


def test_a_checkpoint_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "global_step_2").mkdir()
    with pytest.raises(TooManyMissing, match=r"resumes from .*global_step_2"):
        trainer(tmp_path, step=3)._stop_if_too_many_are_missing(step_of([[NAN, NAN]] * 4))
    assert not (tmp_path / "global_step_2" / "data.pt").exists()


def test_at_the_first_step_there_is_nothing_to_save(tmp_path):
    with pytest.raises(TooManyMissing, match="there is no earlier checkpoint"):
        trainer(tmp_path, step=1)._stop_if_too_many_are_missing(step_of([[NAN, NAN]] * 4))
    assert not list(tmp_path.iterdir())


def test_samples_go_to_a_file_and_to_wandb(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr("wandb.log", lambda content, step: logged.append((content, step)))
    section = OmegaConf.create(
        {"log_val_generations": 2, "default_local_dir": str(tmp_path), "logger": ["file", "wandb"]}
    )
    infos = {"quality": [1.0, None, 3.0, 4.0], "conciseness": [5.0, None, 7.0, 8.0]}
    validation_samples.log(section, 7, ["d", "a", "c", "b"], ["D", "A", "C", "B"], infos, ("quality", "conciseness"))
    lines = [json.loads(line) for line in (tmp_path / "val_samples.jsonl").read_text().splitlines()]
    assert [(line["input"], line["output"]) for line in lines] == [("a", "A"), ("c", "C")]
    assert lines[0]["rewards"] == {"quality": None, "conciseness": None}
    ((content, step),) = logged
    table = content["saw-val/samples"]
    assert (step, table.columns) == (7, ["step", "input", "output", "quality", "conciseness"])
    assert table.data == [[7, "a", "A", None, None], [7, "c", "C", 3.0, 7.0]]
    section.log_val_generations = 0
    validation_samples.log(section, 8, ["d"], ["D"], infos, ("quality",))
    assert len(logged) == 1


@pytest.mark.parametrize("before", ["", '{"step": 6}\n', '{"step": 6}\n{"step": 7, "inp'])
def test_samples_after_a_line_that_a_kill_has_cut_begin_their_own(tmp_path, before):
    """Kind: appending to a file whose last line is cut off; also to complete and empty files."""
    file = tmp_path / "val_samples.jsonl"
    file.write_text(before)
    section = OmegaConf.create({"log_val_generations": 1, "default_local_dir": str(tmp_path), "logger": ["file"]})
    validation_samples.log(section, 8, ["d"], ["D"], {"quality": [1.0]}, ("quality",))
    assert json.loads(file.read_text().split("\n")[-2])["step"] == 8
    assert file.read_text().startswith(before)
    assert file.read_text().count("\n") == before.count("\n") + 1 + (not before.endswith("\n") and before != "")


@pytest.fixture
def small_ray(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    yield
    judge_actor._worker.cache_clear()
    ray.shutdown()


@pytest.mark.slow
def test_a_judge_whose_process_cannot_start_gives_no_verdict(small_ray, monkeypatch):
    options = JudgeOptions.of({**RUBRIC, "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NOT_HERE"})
    for _ in range(2):
        verdict = asyncio.run(judge_actor.ask(options, {"reddit_text": "", "human_summary": "", "model_summary": ""}))
        assert all(math.isnan(score) for score in verdict.scores.values())
        assert verdict.fault == "the judge's process ended"


def judge_info(**values):
    return info(1.0) | {f"judge_{key}": value for key, value in values.items()}


PARTS = ("requests", "input_tokens", "output_tokens", "dollars", "cached")


@pytest.mark.parametrize("absent", [{"quality": 1.0}, {}, {"judge_seconds": 2.0}])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_costs_are_summed_over_the_samples_that_have_some(absent, position):
    """Kind: samples for which the reward function reports no cost, or only part of it, anywhere in the batch."""
    infos = [info(1.0), info(3.0, cached=1.0)]
    infos.insert(position, absent)
    result = step_metrics.judge_metrics(infos)
    assert result["judge/dollars"] == 1.0
    assert (result["judge/requests"], result["judge/input_tokens"], result["judge/output_tokens"]) == (2.0, 20.0, 4.0)
    assert (result["judge/hit_rate"], result["judge/seconds/max"], result["judge/seconds/mean"]) == (0.5, 3.0, 2.0)
    assert result["judge/without_cost"] == 1.0


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, "?"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_cost_that_is_not_known_is_in_no_sum(part, nothing):
    """Kind: one value of one sample is None, NaN or not a number."""
    result = step_metrics.judge_metrics([judge_info(**{part: nothing}), info(1.0)])
    expected = {"requests": 2.0, "input_tokens": 20.0, "output_tokens": 4.0, "dollars": 1.0}
    for name, value in expected.items():
        assert result[f"judge/{name}"] == (value / 2 if name == part else value)
    assert result["judge/hit_rate"] == 0.0
    assert result.get("judge/without_cost", 0.0) == (0.0 if part == "cached" else 1.0)


def test_what_nobody_knows_is_nan_and_what_is_known_is_not_said_to_be_unknown():
    result = step_metrics.judge_metrics([{"judge_requests": 1.0}, {"quality": 1.0}])
    assert (result["judge/requests"], result["judge/without_cost"]) == (1.0, 2.0)
    assert all(math.isnan(result[f"judge/{name}"]) for name in ("dollars", "hit_rate", "seconds/mean", "seconds/p95"))
    assert step_metrics.judge_metrics([judge_info(uncounted=1.0), info(1.0), {}])["judge/without_cost"] == 2.0
    assert "judge/without_cost" not in step_metrics.judge_metrics([judge_info(uncounted=0.0)])
    assert step_metrics.judge_metrics([]) == step_metrics.judge_metrics([{}]) == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("$model_summary for $5", r"'\$5', which is not a field"),
        ("$model_summary $sumary", r"field \$sumary, .*expected \$reddit_text, \$human_summary, \$model_summary"),
        ("Judge it.", "has no field"),
        ("$human_summary", r"does not have \$model_summary"),
    ],
)
def test_a_prompt_that_cannot_be_filled_in_stops_before_ray(tmp_path, text, fault):
    """Kind: templates that would fail, or send nothing, at the first sample of the first step."""
    path = tmp_path / "own.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{SECTION}.prompt: {path} .*{fault}"):
        check_config(configuration(f"{SECTION}.prompt={path}"))


def test_what_verl_serves_is_cached_by_its_model_and_not_by_its_router():
    """Kind: the router's address differs between runs, and one name may be used for several models."""

    def served(model, router, *overrides):
        config = configuration("judge=verl", f"reward.reward_model.model_path={model}", *overrides)
        return judge_actor.options_of(config.reward.custom_reward_function.reward_kwargs.judge, router=router)

    first = served("m", "10.0.0.1:80")
    assert (first.server, first.model) == (served("m", "10.0.0.2:81").server, "m")
    alias = f"{SECTION}.model=judge"
    assert served("m", "10.0.0.1:80", alias).server != served("other", "10.0.0.1:80", alias).server
    own = {**RUBRIC, "model": "m"}
    assert first.server != judge_actor.options_of({**own, "base_url": "http://10.0.0.1:80/v1"}, None).server
    plain = judge_actor.options_of(own, "10.0.0.1:80")
    assert plain.server == judge_actor.options_of(own, "10.0.0.2:81").server
