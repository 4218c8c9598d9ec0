"""The section ``saw`` and what it demands of verl's configuration: found before Ray starts, with what is allowed."""

from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from saw.rewards import returns
from saw.verl import trainer as trainer_module
from saw.verl.config import ConfigError, ObjectiveSettings, Settings
from saw.verl.config_checks import check_config
from saw.verl.reward_ranges import RewardRanges
from saw.verl.trainer import SAWTrainer
from tests.configs import compose

TWO = {"format": {"minimum": 0, "maximum": 1}, "correctness": {"minimum": -3, "maximum": 3, "priority": 2}}


def settings(**changes) -> Settings:
    return Settings.of(OmegaConf.create({"saw": {"method": "saw_gdpo", "objectives": TWO, **changes}}))


def test_mapping_and_list_mean_the_same():
    as_list = [{"name": name, **rest} for name, rest in TWO.items()]
    assert settings() == settings(objectives=as_list)
    assert settings().names == ("format", "correctness")
    assert settings().objectives[1] == ObjectiveSettings(name="correctness", minimum=-3, maximum=3, priority=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "ppo"}, ["saw.method", "'ppo'", "saw_grpo, saw_gdpo"]),
        ({"metod": "grpo"}, ["saw.metod", "no such setting"]),
        ({"options": {"profile": "new"}}, ["saw.options.profile", "'new'", "paper, released"]),
        ({"objectives": {}}, ["saw.objectives", "at least 1"]),
        ({"objectives": {"a": {"minimum": "low"}}}, ["saw.objectives.a.minimum", "number", "'low'"]),
        ({"objectives": {"a": {"minimum": 0, "priority": -1}}}, ["priority", "greater than or equal to 0", "-1"]),
        ({"objectives": {"a": {"minimum": 1, "maximum": 1}}}, ["maximum is 1", "above the minimum 1"]),
        ({"objectives": {"score": {"minimum": 0}}}, ["'score'", "reserved"]),
        ({"objectives": [{"name": "a", "minimum": 0}, {"name": "a", "minimum": 1}]}, ["'a'", "twice"]),
        ({"objectives": None}, ["saw.objectives", "it is None", "{accuracy: {minimum: 0, maximum: 1}}"]),
        ({"objectives": "a,b"}, ["saw.objectives", "it is 'a,b'", "{accuracy: {minimum: 0, maximum: 1}}"]),
        ({"objectives": {"a": 1}}, ["saw.objectives", "'a' is 1", "minimum, maximum, priority"]),
        ({"objectives": {"a": [0, 1]}}, ["saw.objectives", "'a' is [0, 1]", "minimum, maximum, priority"]),
        (
            {"objectives": {"a": {"name": "b"}}},
            ["saw.objectives", "'a' is {'name': 'b'}", "minimum, maximum, priority"],
        ),
        ({"objectives": {"a": {"minimum": 0, "priority": 1e80}}}, ["saw.objectives.a.priority", "1e+80"]),
        ({"poll_interval": float("inf")}, ["saw.poll_interval", "finite", "inf"]),
        ({"poll_interval": 0}, ["saw.poll_interval", "greater than 0"]),
    ],
)
def test_bad_section(changes, words):
    with pytest.raises(ConfigError) as error:
        settings(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("objectives", [{"a": {"minimum": 0, "priority": -1}}, [{"name": "a", "priority": -1}]])
def test_a_wrong_objective_is_the_only_fault(objectives):
    """Kind: a consequence of a fault (no objective is left) hides the fault."""
    with pytest.raises(ConfigError) as error:
        settings(objectives=objectives)
    assert len(str(error.value).splitlines()) == 1


def test_absent_objectives_show_how_to_write_them():
    with pytest.raises(ConfigError, match=r"saw\.objectives is not set; expected .*{accuracy: {minimum: 0"):
        Settings.of(OmegaConf.create({"saw": {"method": "saw_gdpo"}}))


def test_absent_section_shows_how_to_write_one():
    with pytest.raises(ConfigError, match=r"\+plugin=saw .*\+saw\.objectives="):
        Settings.of(OmegaConf.create({}))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "algorithm.adv_estimator=grpo",
            ["trainer.v1.trainer_mode is 'saw'", "algorithm.adv_estimator 'grpo'", "set both"],
        ),
        ("trainer.v1.trainer_mode=sync", ["'sync'", "set both"]),
        ("trainer.use_v1=false", ["trainer.use_v1"]),
        ("critic.enable=true", ["critic.enable"]),
        ("algorithm.norm_adv_by_std_in_grpo=false", ["norm_adv_by_std_in_grpo"]),
        ("algorithm.use_kl_in_reward=true", ["use_kl_in_reward", "'saw_gdpo'", "use_kl_loss"]),
        ("reward.reward_model.enable=true", ["enable_resource_pool"]),
        ("+saw.objectives.length.minimum=0", ["'length'", "does not return", "correctness, format"]),
        ("reward.custom_reward_function.path=null", ["saw.objectives.format.minimum is not set", "lowest value"]),
    ],
)
def test_bad_configuration(override, words):
    with pytest.raises(ConfigError) as error:
        check_config(compose(override))
    for word in words:
        assert word in str(error.value)


def test_the_released_kl_goes_with_the_released_profile():
    """Kind: half of a reading changes what the penalty means, on the command line or in a user's own file."""
    released = {"profile": "released"}
    assert settings(method="grpo", kl_in_reward="grpo_only", options=released).feels_kl_in_reward
    for options in ({}, {"profile": "paper"}):
        with pytest.raises(ConfigError, match=r"kl_in_reward is 'grpo_only'.*options\.profile is 'paper'.*reading="):
            settings(method="grpo", kl_in_reward="grpo_only", options=options)
    with pytest.raises(ConfigError, match=r"options\.profile is 'paper'"):
        check_config(compose("experiment=quickstart", "reading=as_released", "saw.options.profile=paper"))


def test_the_clip_is_that_of_the_gradient_methods():
    gradient = {"profile": "released", "gradient": {"clip": 1.0, "reduction": "sum"}}
    assert settings(method="gradient_gdpo", options=gradient).gradient_clip == 1.0
    assert settings(method="gradient_gdpo").gradient_clip is None
    assert settings(options={**gradient, "informativeness": "gradient_norm"}).gradient_clip is None


PRECISION = "actor_rollout_ref.actor.fsdp_config.mixed_precision"
CORRECTION = "algorithm.rollout_correction"


@pytest.mark.parametrize("method", [["saw.method=gradient_grpo"], ["saw.options.informativeness=gradient_norm"]])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"{CORRECTION}.rollout_is=token", [f"{CORRECTION}.rollout_is is 'token'", "set it to null"]),
        (f"{CORRECTION}.rollout_is=sequence", [f"{CORRECTION}.rollout_is is 'sequence'"]),
        (f"{CORRECTION}.rollout_rs=seq_mean_k3", [f"{CORRECTION}.rollout_rs is 'seq_mean_k3'", "rejects samples"]),
        (f"++{PRECISION}={{param_dtype: fp16}}", [f"{PRECISION}.param_dtype is 'fp16'", "bf16 or fp32"]),
        (f"++{PRECISION}={{param_dtype: float16}}", ["loss scaling"]),
        (f"++{PRECISION}={{param_dtype: 16}}", [f"{PRECISION}.param_dtype is 16"]),
    ],
)
def test_what_the_objectives_gradients_would_not_see_is_refused(method, override, words):
    """Settings that change the update's gradient but not the objectives', which are then not its parts."""
    with pytest.raises(ConfigError) as error:
        check_config(compose(*method, override))
    for word in words:
        assert word in str(error.value)
    assert check_config(compose("saw.method=saw_gdpo", override)) is not None  # no gradients, no objection


@pytest.mark.parametrize("precision", ["null", "{param_dtype: bf16}", "{reduce_dtype: fp32}"])
def test_precisions_without_loss_scaling_are_allowed(precision):
    assert check_config(compose("saw.method=gradient_grpo", f"++{PRECISION}={precision}")) is not None


def test_kl_in_the_reward_is_allowed_where_rewards_are_summed():
    assert check_config(compose("algorithm.use_kl_in_reward=true", "saw.method=saw_grpo")) is not None


def test_a_configuration_without_saw_is_none_of_our_business():
    assert check_config(compose("algorithm.adv_estimator=grpo", "trainer.v1.trainer_mode=sync")) is None


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        settings().method = "grpo"


def reward_file(tmp_path, body) -> list[str]:
    path = tmp_path / "rewards.py"
    path.write_text(body)
    return [f"reward.custom_reward_function.path={path}", "reward.custom_reward_function.name=reward"]


PLAIN = "def reward(solution_str, ground_truth, **kwargs):\n    return {'format': 1.0, 'brevity': 2.0}\n"


def test_an_undeclared_reward_function_is_tried_on_the_first_row(tmp_path, toy_data):
    data = f"data.train_files={toy_data[0]}"
    with pytest.raises(
        ConfigError, match="'correctness', which the reward function does not return; it returns brevity, format"
    ):
        check_config(compose(*reward_file(tmp_path, PLAIN), data))
    # An asynchronous one may cost money, and a declared one has said what it returns.
    minima = [f"++saw.objectives.{name}.minimum=0" for name in ("format", "correctness")]
    check_config(compose(*reward_file(tmp_path, "async " + PLAIN), data, *minima))
    declared = "from saw.rewards import returns\n@returns('format', 'correctness')\n" + PLAIN
    check_config(compose(*reward_file(tmp_path, declared), data, *minima))


def test_a_reward_function_that_fails_on_its_own_reference_says_when(tmp_path, toy_data):
    body = "def reward(**kwargs):\n    raise KeyError('oops')\n"
    with pytest.raises(KeyError) as error:
        check_config(compose(*reward_file(tmp_path, body), f"data.train_files={toy_data[0]}"))
    assert "first row" in error.value.__notes__[0]


@pytest.mark.parametrize("value", ["null", "[]", "5", "GARBAGE", "/nowhere.parquet"])
@pytest.mark.parametrize("rollouts", [1, 2])
def test_data_that_cannot_be_read_is_left_to_the_check_of_the_data(tmp_path, value, rollouts):
    """Kind: reading the data for another purpose fails with an error that names neither key nor file."""
    (tmp_path / "rows.parquet").write_bytes(b"no rows")
    data = f"data.train_files={value}".replace("GARBAGE", str(tmp_path / "rows.parquet"))
    minima = [f"++saw.objectives.{name}.minimum=0" for name in ("format", "correctness")]
    arguments = [*reward_file(tmp_path, PLAIN), data, *minima, f"actor_rollout_ref.rollout.n={rollouts}"]
    # of one rollout there may be more only in a file that may have the column for them
    is_one = rollouts == 1 and value != "GARBAGE"
    refused = pytest.raises(ConfigError, match=r"rollout\.n is 1") if is_one else nullcontext()
    with refused:
        check_config(compose(*arguments))


@pytest.mark.parametrize("column", ["reward_model", "extra_info"])
def test_a_first_row_of_another_kind_is_named(tmp_path, column):
    row = {"prompt": [{"role": "user", "content": "a"}], "data_source": "b", "reward_model": {"ground_truth": "c"}}
    pq.write_table(pa.Table.from_pylist([{**row, column: "text"}]), tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match=rf"rows\.parquet', whose first row has {column} 'text'; expected a mapping"):
        check_config(compose(*reward_file(tmp_path, PLAIN), f"data.train_files={tmp_path / 'rows.parquet'}"))


@pytest.mark.parametrize("body", ["reward = 5\n", "reward = None\n"])
def test_a_reward_that_is_no_function_is_refused(tmp_path, body):
    with pytest.raises(
        ConfigError, match=r"custom_reward_function\.name is 'reward', which is .*; expected a function"
    ):
        check_config(compose(*reward_file(tmp_path, body)))


KWARGS = "reward.custom_reward_function.reward_kwargs"
OPTIONS = f"{KWARGS}.options"
BOUNDS = "{'format': (0, 1), 'correctness': (-3, 3)}"


def declared(tmp_path, bounds: str) -> list[str]:
    body = f"from saw.rewards import returns\n@returns('format', 'correctness', bounds={bounds})\n" + PLAIN
    return [*reward_file(tmp_path, body), f"~{OPTIONS}"]


@pytest.mark.parametrize("argument", ["solution_str", "extra_info", "step"])
def test_an_argument_that_would_replace_the_training_s_is_refused(tmp_path, argument):
    """Kind: with verl's merge, every response would be the configured one."""
    arguments = declared(tmp_path, f"lambda step, **_: {BOUNDS}")
    with pytest.raises(ConfigError, match=rf"{KWARGS}\.{argument} is 3, but .* gets {argument} from the training"):
        check_config(compose(*arguments, f"+{KWARGS}.{argument}=3"))


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        (BOUNDS, "bounds is {.*; expected a function"),
        (f"lambda: {BOUNDS}", r"bounds cannot be called like that.* it takes \(\), and gets step"),
        ("lambda step: {'format': (0, 1e80), 'correctness': (-3, 3)}", r"range from 0 to 1e\+80"),
        ("lambda step: {'format': (1, 0), 'correctness': (-3, 3)}", "range from 1 to 0"),
        ("lambda step: {'format': (0, 1, 2), 'correctness': (-3, 3)}", "expected a pair of numbers"),
    ],
)
def test_impossible_bounds_are_refused(tmp_path, bounds, says):
    with pytest.raises(ConfigError, match=says):
        check_config(compose(*declared(tmp_path, bounds)))


def test_bounds_that_raise_say_for_which_step(tmp_path):
    with pytest.raises(ZeroDivisionError) as error:
        check_config(compose(*declared(tmp_path, "lambda step: 1 // 0")))
    assert error.value.__notes__ == ["raised by the function of the rewards' bounds, for step 0"]


def test_a_schedule_that_goes_wrong_later_ends_the_training_before_its_first_step(tmp_path, monkeypatch):
    bounds = "lambda step: {'format': (0, 1), 'correctness': (-3, 2 - step)}"  # empty from step 6 on
    config = compose(*declared(tmp_path, bounds))
    made = SAWTrainer.__new__(SAWTrainer)
    made.config, made.settings = config, check_config(config)
    made._ranges = RewardRanges.of(config, made.settings)
    monkeypatch.setattr(trainer_module.PPOTrainerSync, "on_init_end", lambda self: None)
    monkeypatch.setattr(trainer_module.run_info, "write", lambda *_: None)
    made.total_training_steps = 5
    made.on_init_end()
    made.total_training_steps = 6
    with pytest.raises(ConfigError, match="'correctness' range from -3 to -4 at step 6"):
        made.on_init_end()


@pytest.mark.parametrize(
    "declaration",
    [
        lambda: returns(),
        lambda: returns(["format"]),
        lambda: returns(lambda solution_str: {}),  # without parentheses
        lambda: returns("format", bounds={"format": (0, 1)}),
        lambda: returns("format", check=True),
    ],
)
def test_a_wrong_declaration_of_a_reward_function_is_refused_when_it_is_made(declaration):
    with pytest.raises(TypeError, match=r"saw\.rewards\.returns"):
        declaration()


def test_a_scalar_reward_function_is_refused(tmp_path, toy_data):
    body = "def reward(**kwargs):\n    return 1.0\n"
    with pytest.raises(ConfigError, match="returns float; expected a dict"):
        check_config(compose(*reward_file(tmp_path, body), f"data.train_files={toy_data[0]}"))


def ranges(*overrides: str, step: int = 0) -> list[tuple[float, float]]:
    config = compose(*overrides)
    checked = check_config(config)
    assert checked is not None
    return RewardRanges.of(config, checked).at(step)


def test_minima_come_from_the_reward_and_follow_its_options_and_schedule():
    assert ranges() == [(0, 1), (-3, 3)]
    assert ranges(f"+{OPTIONS}.correctness_max=1") == [(0, 1), (-1, 1)]
    assert ranges(f"+{OPTIONS}.reward_schedule=true", step=0) == [(-2, 2), (-2, 2)]
    assert ranges(f"+{OPTIONS}.reward_schedule=true", step=75) == [(-1, 1.5), (-2.5, 2.5)]
    assert ranges("+saw.objectives.correctness.minimum=-5") == [(0, 1), (-5, 3)]


def test_an_objective_that_an_option_turns_on_may_be_listed():
    assert ranges(f"+{OPTIONS}.length=true", "+saw.objectives.length.priority=1")[2] == (0, 1)


def test_a_reward_without_bounds_needs_a_minimum(tmp_path, toy_data):
    arguments = [*reward_file(tmp_path, "async " + PLAIN), f"data.train_files={toy_data[0]}"]
    with pytest.raises(ConfigError, match=r"saw\.objectives\.format\.minimum is not set"):
        check_config(compose(*arguments))
    minima = [f"++saw.objectives.{name}.minimum=-1" for name in ("format", "correctness")]
    check_config(compose(*arguments, *minima))


# ---------------------------------------------------------------- objectives of a turn

ROLLOUT = "actor_rollout_ref.rollout"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"turn": 0}, ["saw.objectives.format.turn", "greater than or equal to 1", "0"]),
        ({"turn": 1.5}, ["saw.objectives.format.turn", "integer", "1.5"]),
        ({"turn": "first"}, ["saw.objectives.format.turn", "integer", "'first'"]),
    ],
)
def test_a_bad_turn(changes, words):
    with pytest.raises(ConfigError) as error:
        settings(objectives={"format": {"minimum": 0, **changes}})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("method", ["grpo", "saw_grpo", "gradient_gdpo"])
def test_a_turn_needs_a_method_with_an_advantage_of_each_objective(method):
    objectives = {"format": {"minimum": 0, "turn": 1}, "correctness": {"minimum": -3}}
    assert settings(objectives=objectives).names_turns
    with pytest.raises(ConfigError, match=rf"saw: the turn of 'format' is 1, but {method} "):
        settings(objectives=objectives, method=method)
    assert not settings(method=method).names_turns


@pytest.mark.parametrize(
    ("turn", "most", "agent", "words"),
    [
        (2, "null", "single_turn_agent", ["correctness.turn is 2", "default_agent_loop is 'single_turn_agent'"]),
        (3, 2, "tool_agent", ["correctness.turn is 3", "max_assistant_turns is 2", "at most 2 turns"]),
        (1, "null", "single_turn_agent", []),
        (2, 2, "tool_agent", []),
        (9, "null", "tool_agent", []),
    ],
)
def test_a_turn_that_no_response_can_have(toy_data, turn, most, agent, words):
    config = compose(
        f"+saw.objectives.correctness.turn={turn}",
        f"{ROLLOUT}.multi_turn.max_assistant_turns={most}",
        f"{ROLLOUT}.agent.default_agent_loop={agent}",
        f"data.train_files={toy_data[0]}",
    )
    if not words:
        assert check_config(config).names_turns
        return
    with pytest.raises(ConfigError) as error:
        check_config(config)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.seed=null"], ["data.seed is None", "seeded_single_turn_agent"]),
        ([f"{ROLLOUT}.enable_chunked_prefill=true"], ["enable_chunked_prefill is True", "set it to False"]),
        ([f"{ROLLOUT}.enable_chunked_prefill=true", "trainer.device=cuda"], []),
        (["data.seed=null", f"{ROLLOUT}.agent.default_agent_loop=single_turn_agent"], []),
        (["data.seed=0"], []),
    ],
)
def test_what_seeded_requests_need(changes, words):
    seeded = f"{ROLLOUT}.agent.default_agent_loop=seeded_single_turn_agent"
    config = compose(seeded, "data.seed=1", f"{ROLLOUT}.enable_chunked_prefill=false", *changes)
    if not words:
        check_config(config)
        return
    with pytest.raises(ConfigError) as error:
        check_config(config)
    for word in words:
        assert word in str(error.value)


def test_a_row_may_name_an_agent_loop_of_several_turns(toy_data, tmp_path):
    table = pq.read_table(toy_data[0])
    path = tmp_path / "train.parquet"
    pq.write_table(table.append_column("agent_name", [["tool_agent"] * len(table)]), path)
    turn = "+saw.objectives.correctness.turn=2"
    assert check_config(compose(turn, f"data.train_files={path}")).names_turns
    assert check_config(compose(turn, "data.train_files=elsewhere.parquet")).names_turns  # on another node
