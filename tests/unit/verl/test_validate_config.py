"""What would go wrong hours later, or silently, stops before Ray starts, with the key and what is allowed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saw.machine import requirements
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from saw.verl.names import FAILED
from saw.verl.reward_ranges import RewardRanges
from tests.configs import compose

FUNCTION = "reward.custom_reward_function"
KWARGS = f"{FUNCTION}.reward_kwargs"
MINIMA = [f"++saw.objectives.{name}.minimum=-3" for name in ("format", "correctness")]


def refused(*overrides: str) -> str:
    """The message of a configuration that must not start."""
    with pytest.raises(ConfigError) as error:
        check_config(compose(*overrides))
    return str(error.value)


def reward_file(tmp_path, body: str, name: str = "reward") -> list[str]:
    path = tmp_path / "rewards.py"
    path.write_text(body)
    return [f"{FUNCTION}.path={path}", f"{FUNCTION}.name={name}", f"~{KWARGS}", f"+{KWARGS}={{}}"]


# ---------------------------------------------------------------- the reward manager


@pytest.mark.parametrize("name", ["naive", "dapo", "prime", "gdpo", "remote", "sawx"])
def test_another_reward_manager_is_refused(name):
    """Its penalties reach no advantage, and it has no training step; verl registers all of these except the last."""
    message = refused(f"reward.reward_manager.name={name}")
    assert f"reward.reward_manager.name is {name!r}" in message
    assert "'saw'" in message


def test_our_own_reward_manager_is_known_by_any_python(monkeypatch):
    """verl's registry holds a proxy. inspect.unwrap looks into one of a class only before Python 3.11.9 and 3.12.3."""
    check_config(compose())
    monkeypatch.setattr("inspect.unwrap", lambda function, stop=None: function)
    check_config(compose())


MANAGERS = """
from saw.verl.reward_manager import MultiRewardManager
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

class Derived(MultiRewardManager):
    pass

class Other(NaiveRewardManager):
    pass
"""


def manager(tmp_path, name: str) -> list[str]:
    path = tmp_path / "managers.py"
    path.write_text(MANAGERS)
    section = "reward.reward_manager"
    return [f"{section}.source=importlib", f"{section}.module.path={path}", f"{section}.name={name}"]


def test_a_reward_manager_derived_from_ours_passes(tmp_path):
    assert check_config(compose(*manager(tmp_path, "Derived"))) is not None


@pytest.mark.parametrize("name", ["Other", "Absent"])
def test_a_loaded_reward_manager_of_another_kind_is_refused(tmp_path, name):
    assert f"reward.reward_manager.name is {name!r}" in refused(*manager(tmp_path, name))


def test_a_reward_manager_without_its_file_is_refused(tmp_path):
    message = refused("reward.reward_manager.source=importlib")
    assert "reward.reward_manager.name is 'saw' and its source 'importlib'" in message


def test_a_reward_model_without_a_reward_function_is_refused():
    """verl bypasses the reward manager with the model's scalar, and every sample is lost because there is no dict."""
    message = refused(
        *("reward.reward_model.enable=true", "reward.reward_model.enable_resource_pool=true"), f"{FUNCTION}.path=null"
    )
    assert f"{FUNCTION}.path is not set" in message


# ---------------------------------------------------------------- engines and gradient methods

ENGINES = {"dp": "fsdp2", "megatron": "megatron", "veomni": "veomni", "torchtitan": "torchtitan"}


@pytest.mark.parametrize(("engine", "strategy"), ENGINES.items())
def test_the_gpu_platform_leaves_verls_engines_what_they_are(engine, strategy):
    config = compose("platform=gpu", f"model_engine={engine}")
    assert config.actor_rollout_ref.actor.strategy == strategy
    assert config.actor_rollout_ref.ref.strategy == strategy
    assert check_config(config) is not None


@pytest.mark.parametrize("engine", sorted(ENGINES.keys() - {"dp"}))
@pytest.mark.parametrize("method", ["saw.method=gradient_gdpo", "saw.options.informativeness=gradient_norm"])
def test_gradient_methods_ask_for_the_engine_and_not_for_the_name_of_its_strategy(engine, method):
    for strategy in (engine, "fsdp2"):
        message = refused(
            "platform=gpu", f"model_engine={engine}", method, f"actor_rollout_ref.actor.strategy={strategy}"
        )
        assert f"model_engine is {engine!r}" in message
        assert "set it to dp" in message


@pytest.mark.parametrize("engine", sorted(ENGINES.keys() - {"dp"}))
def test_the_strategy_of_another_engine_is_refused(engine):
    """verl reads the strategy in one place and the engine in another."""
    message = refused("platform=gpu", f"model_engine={engine}", "actor_rollout_ref.actor.strategy=fsdp2")
    assert "actor_rollout_ref.actor.strategy is 'fsdp2'" in message
    assert repr(ENGINES[engine]) in message


PRECISION = "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype"


@pytest.mark.parametrize(("engine", "fails"), [("dp", True), ("megatron", False)])
def test_a_trl_beside_which_verl_loads_no_model_is_refused(monkeypatch, engine, fails):
    trl = requirements.Problem("trl", "1.16.0", "one with AutoModelForCausalLMWithValueHead, or none", "verl 0.9.1")
    monkeypatch.setattr(requirements, "trl_problem", lambda: trl)
    config = compose("platform=gpu", f"model_engine={engine}")
    if fails:
        with pytest.raises(ConfigError, match=r"trl: 1\.16\.0 is installed.*pip uninstall trl.*docs/trl\.md"):
            check_config(config)
    else:
        check_config(config)


@pytest.mark.parametrize("precision", ["fp16", "float16"])
def test_half_precision_with_gradient_methods_is_refused(precision):
    message = refused("saw.method=gradient_grpo", f"++{PRECISION}={precision}")
    assert f"{PRECISION} is {precision!r}" in message
    assert "bf16 or fp32" in message


def test_half_precision_is_fine_for_the_others_and_other_precisions_for_gradient_methods():
    check_config(compose(f"++{PRECISION}=fp16"))
    for precision in ("bf16", "fp32"):
        check_config(compose("saw.method=gradient_grpo", f"++{PRECISION}={precision}"))
    check_config(compose("platform=gpu", "saw.method=gradient_grpo"))  # verl's own default is bf16


CORRECTION = "algorithm.rollout_correction"


@pytest.mark.parametrize(
    ("key", "value"),
    [("rollout_is", "token"), ("rollout_is", "sequence"), ("rollout_rs", "token_k1"), ("rollout_rs", "seq_mean_k3")],
)
def test_corrections_that_the_gradients_would_not_see_are_refused(key, value):
    for method in ("saw.method=gradient_gdpo", "saw.options.informativeness=gradient_norm"):
        message = refused(method, f"{CORRECTION}.{key}={value}")
        assert f"{CORRECTION}.{key} is {value!r}" in message
        assert "set it to null" in message
    check_config(compose(f"{CORRECTION}.{key}={value}"))


# ---------------------------------------------------------------- the group filter

FILTER = "algorithm.filter_groups"


@pytest.mark.parametrize("metric", ["null", "''", "formt", "acc", "seq_reward", FAILED])
def test_a_group_filter_needs_a_reward_that_is_there(metric):
    message = refused(f"{FILTER}.enable=true", f"{FILTER}.metric={metric}")
    assert f"{FILTER}.metric is" in message
    assert "reward, score, format, correctness" in message


@pytest.mark.parametrize("metric", ["reward", "score", "format"])
def test_a_group_filter_by_the_scalar_or_an_objective(metric):
    check_config(compose(f"{FILTER}.enable=true", f"{FILTER}.metric={metric}"))


def test_a_group_filter_that_is_off_may_say_anything():
    check_config(compose(f"{FILTER}.metric=null"))
    check_config(compose(f"{FILTER}.metric=acc"))


def test_a_group_filter_by_another_key_of_the_reward_function(tmp_path, toy_data):
    """Reported if the function is tried; otherwise by the first step."""
    body = "def reward(**kwargs):\n    return {'format': 1.0, 'correctness': 2.0, 'acc': 1.0}\n"
    filtered = [f"data.train_files={toy_data[0]}", f"{FILTER}.enable=true", *MINIMA]
    check_config(compose(*reward_file(tmp_path, body), *filtered, f"{FILTER}.metric=acc"))
    assert "format, correctness, acc" in refused(*reward_file(tmp_path, body), *filtered, f"{FILTER}.metric=accuracy")
    check_config(compose(*reward_file(tmp_path, "async " + body), *filtered, f"{FILTER}.metric=acc"))


# ---------------------------------------------------------------- rollouts of a prompt

N = "actor_rollout_ref.rollout.n"


def rows_with(tmp_path, toy_data, numbers: list[int | None] | None, suffix: str = "parquet") -> str:
    """A training file whose rows have, or lack, their number of rollouts."""
    table = pq.read_table(toy_data[0]).slice(0, 4)
    if numbers is not None:
        table = table.append_column("__rollout_n__", pa.array(numbers, pa.int64()))
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    return str(path)


@pytest.mark.parametrize(
    ("suffix", "numbers"),  # in JSON only the key is looked for; the trainer looks at the first samples
    [("jsonl", None), ("parquet", None), ("parquet", [1, 1, 1, 1]), ("parquet", [None, None, None, None])],
)
def test_one_rollout_a_prompt_is_refused(tmp_path, toy_data, numbers, suffix):
    message = refused(f"{N}=1", f"data.train_files={rows_with(tmp_path, toy_data, numbers, suffix)}")
    assert f"{N} is 1" in message
    assert "__rollout_n__" in message


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_number_of_rollouts_for_each_prompt_is_allowed(tmp_path, toy_data, suffix):
    varied = rows_with(tmp_path, toy_data, [1, 4, 2, 1], suffix)
    check_config(compose(f"{N}=1", f"data.train_files={varied}"))
    check_config(compose(f"{N}=1", f"data.train_files=[{toy_data[0]},{varied}]"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.custom_cls.path=mine.py"],
        ["++actor_rollout_ref.rollout.agent.agent_loop_manager_class=mine.Manager"],
        ["data.train_files=s3://bucket/rows.parquet"],
        ["saw.options.profile=released"],  # in which a sample alone in its group has its reward for an advantage
    ],
)
def test_one_rollout_where_another_may_set_the_number_is_allowed(overrides):
    check_config(compose(f"{N}=1", *overrides))


def test_one_rollout_is_refused_where_there_is_no_file():
    assert f"{N} is 1" in refused(f"{N}=1", "data.train_files=/nowhere/rows.parquet")


# ---------------------------------------------------------------- reward functions and their arguments

DECLARED = """
from saw.rewards import returns

@returns('format', 'correctness'{declared})
{kind}def reward({parameters}):
    return {{'format': 1.0, 'correctness': 2.0}}
"""
ALL = "data_source, solution_str, ground_truth, extra_info"


@pytest.mark.parametrize("kind", ["", "async "])
@pytest.mark.parametrize(
    ("parameters", "kwargs", "words"),
    [
        (ALL, "{judje: 1}", [f"{KWARGS}.judje is 1", "'judje'"]),
        (ALL + ", judge=None", "{judje: 1, judge: 2}", [f"{KWARGS}.judje is 1"]),
        (ALL + ", judge", "{}", ["'judge'", KWARGS]),
        ("data_source, solution_str, ground_truth", "{}", ["'extra_info'"]),
        ("data_source, answer, ground_truth, extra_info", "{}", ["'answer'"]),
    ],
)
def test_a_declared_reward_function_takes_what_it_is_given(tmp_path, kind, parameters, kwargs, words):
    body = DECLARED.format(declared="", kind=kind, parameters=parameters)
    message = refused(*reward_file(tmp_path, body), *MINIMA, f"+{KWARGS}={kwargs}")
    for word in words:
        assert word in message


@pytest.mark.parametrize("parameters", [ALL + ", judge=None", "**kwargs", ALL + ", **kwargs", "*, " + ALL + ", judge"])
def test_a_declared_reward_function_that_takes_it_passes(tmp_path, parameters):
    body = DECLARED.format(declared="", kind="", parameters=parameters)
    check_config(compose(*reward_file(tmp_path, body), *MINIMA, f"+{KWARGS}={{judge: 1}}"))


@pytest.mark.parametrize("what", ["bounds", "check"])
def test_bounds_and_checks_take_it_too(tmp_path, what):
    returns = "{}" if what == "bounds" else "None"
    body = DECLARED.format(declared=f", {what}=lambda step=0: {returns}", kind="", parameters=ALL + ", judge=None")
    message = refused(*reward_file(tmp_path, body), *MINIMA, f"+{KWARGS}={{judge: 1}}")
    assert f"{KWARGS}.judge is 1" in message


def test_a_reward_function_is_told_where_a_served_judge_is(tmp_path):
    """verl then passes two more arguments."""
    served = ["reward.reward_model.enable=true", "reward.reward_model.enable_resource_pool=true", *MINIMA]
    body = DECLARED.format(declared="", kind="async ", parameters=ALL)
    assert "'reward_router_address'" in refused(*reward_file(tmp_path, body), *served)
    parameters = ALL + ", reward_router_address=None, reward_model_tokenizer=None"
    body = DECLARED.format(declared="", kind="async ", parameters=parameters)
    check_config(compose(*reward_file(tmp_path, body), *served))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("options={correctnes_max: 1}", ["options.correctnes_max", "no such setting", "correctness_max", "is 1"]),
        ("options={correctness_max: -1}", ["options.correctness_max", "greater than 0", "is -1"]),
        ("options={length: maybe}", ["options.length", "boolean", "is 'maybe'"]),
        ("options={length_words: 0, coarse: 7}", ["options.length_words", "options.coarse", "is 7"]),
        ("options=length", ["options is 'length'", "mapping"]),
        ("option={length: true}", ["option is {'length': True}", "options"]),
    ],
)
def test_misspelt_options_of_a_reward_are_named(option, words):
    message = refused(f"++{KWARGS}.{option}")
    assert message.startswith(KWARGS)
    for word in words:
        assert word in message


def test_misspelt_options_of_a_judge_and_of_saw_say_what_is_allowed(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")
    message = refused("experiment=tldr", f"+{KWARGS}.judge.in_fligt=3")
    assert f"{KWARGS}.judge.in_fligt: there is no such setting; allowed are" in message
    assert "in_flight" in message
    for key, allowed in (
        ("saw.metod=grpo", "method"),
        ("saw.options.emma=0.5", "ema"),
        ("saw.options.gradient.mo=1", "mu"),
        ("saw.objectives.format.minimun=0", "minimum"),
    ):
        message = refused(f"+{key}")
        assert f"there is no such setting; allowed are {', '.join(sorted({allowed} & set(message.split(', '))))}"
        assert allowed in message.partition("allowed are ")[2]


# ---------------------------------------------------------------- the first row's rewards

REWARD = "def reward(**kwargs):\n    return {{'format': {value}, 'correctness': 2.0}}\n"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("float('inf')", ["inf", "finite"]),
        ("-float('inf')", ["-inf", "finite"]),
        ("'good'", ["'good'", "expected a number"]),
        ("'1.0'", ["'1.0'", "expected a number"]),
        ("[1.0, 2.0]", ["[1.0, 2.0]", "expected a number"]),
        ("{}", ["{}", "expected a number"]),
        ("-3.5", ["-3.5", "minimum -3", "saw.objectives.format.minimum"]),
    ],
)
def test_the_first_rewards_are_checked_as_the_training_would(tmp_path, toy_data, value, words):
    body = REWARD.format(value=value)
    message = refused(*reward_file(tmp_path, body), f"data.train_files={toy_data[0]}", *MINIMA)
    for word in ["'format'", "first training row", *words]:
        assert word in message


@pytest.mark.parametrize("value", ["None", "float('nan')", "-3", "True", "__import__('numpy').float32(-3)"])
def test_first_rewards_that_may_be(tmp_path, toy_data, value):
    """A missing reward is accepted, and one at its minimum, as any type of number."""
    body = REWARD.format(value=value)
    check_config(compose(*reward_file(tmp_path, body), f"data.train_files={toy_data[0]}", *MINIMA))


def test_the_first_reward_at_its_minimum_in_float32_may_be(tmp_path, toy_data):
    body = REWARD.format(value="__import__('torch').tensor(0.7).item()")
    minima = ["+saw.objectives.format.minimum=0.7", MINIMA[1]]
    check_config(compose(*reward_file(tmp_path, body), f"data.train_files={toy_data[0]}", *minima))


def test_a_running_minimum_has_no_below(tmp_path, toy_data):
    body = REWARD.format(value="-100.0")
    minima = ["+saw.objectives.format.minimum=running", MINIMA[1]]
    check_config(compose(*reward_file(tmp_path, body), f"data.train_files={toy_data[0]}", *minima))


def test_training_data_without_rows_is_refused(tmp_path, toy_data):
    pq.write_table(pq.read_table(toy_data[0]).slice(0, 0), tmp_path / "none.parquet")
    message = refused(
        *reward_file(tmp_path, REWARD.format(value="1.0")), f"data.train_files={tmp_path / 'none.parquet'}", *MINIMA
    )
    assert "data.train_files" in message
    assert "no rows" in message


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("bounds", "overrides", "words"),
    [
        ("{'format': (1, 0), 'correctness': (-3, 3)}", [], ["'format'", "from 1 to 0"]),
        ("{'format': (0, 1), 'correctness': (-3, 3)}", ["+saw.objectives.format.minimum=2"], ["from 2 to 1"]),
        ("{'format': (0, 1), 'correctness': (-3, 3)}", ["+saw.objectives.format.maximum=-1"], ["from 0 to -1"]),
        ("{'format': (-float('inf'), 1), 'correctness': (-3, 3)}", [], ["from -inf to 1", "finite"]),
        ("{'format': (float('nan'), 1), 'correctness': (-3, 3)}", [], ["from nan to 1"]),
        ("{'format': (0, float('nan')), 'correctness': (-3, 3)}", [], ["from 0 to nan"]),
        ("{'format': (0, 1, 2), 'correctness': (-3, 3)}", [], ["(0, 1, 2)", "a pair of numbers"]),
        ("{'format': 1, 'correctness': (-3, 3)}", [], ["a pair of numbers"]),
        ("['format', 'correctness']", [], ["a pair of numbers"]),
    ],
)
def test_ranges_that_cannot_be_are_refused(tmp_path, bounds, overrides, words):
    """Wherever they are stated: by the reward function, in the configuration, or one end by each."""
    body = DECLARED.format(declared=f", bounds=lambda step: {bounds}", kind="", parameters="**kwargs")
    message = refused(*reward_file(tmp_path, body), *overrides)
    for word in words:
        assert word in message


def test_a_range_that_turns_around_later_is_named_with_its_step(tmp_path):
    bounds = "{'format': (0, 10 - step), 'correctness': (-3, 3)}"
    body = DECLARED.format(declared=f", bounds=lambda step: {bounds}", kind="", parameters="**kwargs")
    config = compose(*reward_file(tmp_path, body))
    settings = check_config(config)
    assert settings is not None
    assert RewardRanges.of(config, settings).at(10)[0] == (0, 0)
    with pytest.raises(ConfigError, match="from 0 to -1 at step 11"):
        RewardRanges.of(config, settings).at(11)


@pytest.mark.parametrize("lowest", [5, 7])
def test_a_judge_s_lowest_score_is_below_its_highest(monkeypatch, lowest):
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")
    message = refused("experiment=tldr", f"++{KWARGS}.judge.lowest={lowest}", f"++{KWARGS}.judge.highest=5")
    assert f"{KWARGS}.judge.highest: it is 5; expected a number above judge.lowest, {lowest}" in message


def test_the_mark_of_a_failed_reward_is_no_objective():
    with pytest.raises(ValueError, match="reserved"):
        Settings.model_validate({"method": "grpo", "objectives": {FAILED: {"minimum": 0}}})


def test_a_measure_by_the_range_needs_one_that_is_not_a_point(tmp_path):
    body = DECLARED.format(
        declared=", bounds=lambda step: {'format': (1, 1), 'correctness': (-3, 3)}", kind="", parameters="**kwargs"
    )
    check_config(compose(*reward_file(tmp_path, body)))
    message = refused(*reward_file(tmp_path, body), "saw.options.informativeness=range_std")
    assert "needs the range of 'format'" in message


# ---------------------------------------------------------------- what is right is not refused

NEEDS = """
def reward(data_source, solution_str, ground_truth, extra_info):
    assert extra_info["index"] == 7
    turns, scores = extra_info["num_turns"] + 1, len(extra_info["rollout_reward_scores"])
    return {"format": extra_info["global_step"] / 10, "correctness": turns + scores}
"""


def training_row(tmp_path, **more) -> str:
    row = {"data_source": "x", "reward_model": {"ground_truth": "y"}, "extra_info": {"index": 7}, **more}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    return f"data.train_files={tmp_path / 'rows.parquet'}"


def test_a_reward_function_that_reads_what_the_reward_manager_adds_is_tried_with_it(tmp_path):
    """Kind: a function that works in training and would fail only when it is tried."""
    overrides = ["experiment=quickstart", *reward_file(tmp_path, NEEDS), training_row(tmp_path), *MINIMA]
    assert check_config(compose(*overrides)) is not None


@pytest.mark.parametrize("number", ["4", b"4", [4], {"n": 4}])
def test_a_number_of_rollouts_that_is_no_number_is_refused(tmp_path, number):
    rows = training_row(tmp_path, __rollout_n__=number)
    message = refused("experiment=quickstart", "actor_rollout_ref.rollout.n=1", rows)
    assert "rows.parquet" in message
    assert "__rollout_n__" in message
