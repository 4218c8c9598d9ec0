"""What the weighting remembers, and how the trainer hands it to the next step and the next run."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from saw.verl import trainer as trainer_module
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from saw.verl.gradients import LAYERS, REDUCTION, ObjectiveGradients
from saw.verl.reward_ranges import RewardRanges
from saw.verl.trainer import SAWTrainer
from saw.verl.weight_state import State
from tests.configs import compose

NAN = math.nan


def settings(**more) -> Settings:
    return Settings.model_validate(
        {
            "method": "saw_gdpo",
            "objectives": {"a": {"minimum": 0}, "b": {"minimum": "running"}},
            **more,
        }
    )


def test_running_minima_fall_and_never_rise():
    state = State()
    for rewards, lowest in (([[5.0, 2.0], [5.0, 3.0]], 2.0), ([[5.0, NAN], [5.0, 4.0]], 2.0), ([[-9.0, -1.0]], -1.0)):
        state.track_minima(torch.tensor(rewards), settings())
        assert state.minima == {"b": lowest}


def test_nothing_is_known_before_the_first_reward():
    state = State()
    state.track_minima(torch.tensor([[1.0, NAN]]), settings())
    assert state.minima == {}


def test_it_survives_a_checkpoint(tmp_path):
    state = State(weights=[0.1 + 0.2, 0.7], minima={"b": -1.5})
    state.write(tmp_path / "global_step_3")
    assert State.read(tmp_path / "global_step_3") == state
    assert State.read(tmp_path) == State()


def test_gram_matrices_are_averaged_until_the_weights_move():
    state = State()
    assert state.accumulate(torch.eye(2), steps=2, step=1).tolist() == [[1, 0], [0, 1]]
    assert state.grams == [[[1, 0], [0, 1]]]
    assert state.accumulate(3 * torch.ones(2, 2), steps=2, step=2).tolist() == [[2.0, 1.5], [1.5, 2.0]]
    assert state.grams == []


def test_the_learning_rate_of_the_weights_is_the_actor_s():
    config = compose("experiment=quickstart", "saw.method=gradient_grpo")
    assert check_config(config).options.gradient.lr == config.actor_rollout_ref.actor.optim.lr
    config = compose("experiment=quickstart", "saw.method=gradient_grpo", "saw.options.gradient.lr=0.5")
    assert check_config(config).options.gradient.lr == 0.5


def test_the_workers_are_told_the_reduction_and_each_step_s_gradients_are_clipped(monkeypatch):
    """Kind: an option that is ignored, or an average over steps that is clipped instead of each step's gradients."""
    options = {"gradient": {"lr": 1.0, "accumulate": 2, "reduction": "sum", "clip": 1.0, "layers": [3]}}
    section = Settings.model_validate(
        {"method": "gradient_grpo", "objectives": {"a": {"minimum": 0}, "b": {"minimum": 0}}, "options": options}
    )
    told = []

    def compute(self, batch, metrics):
        told.append(dict(batch.extra_info))
        return batch

    monkeypatch.setattr(trainer_module.PPOTrainerSync, "_compute_old_log_prob", compute)
    monkeypatch.setattr(trainer_module.tq, "kv_batch_put", lambda **_: None)
    made = SAWTrainer.__new__(SAWTrainer)
    made.settings, made.state = section, State()
    grams = [[[16.0, 0.0], [0.0, 0.25]], [[0.25, 0.0], [0.0, 4.0]]]
    for step, gram in enumerate(grams, start=1):
        found = ObjectiveGradients(torch.tensor(gram, dtype=torch.float64), 0.0, 0.0)
        made.actor_rollout_wg = SimpleNamespace(objective_gradients=lambda found=found: [found])
        rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        rows = torch.arange(2)
        made._step = SimpleNamespace(
            rewards=rewards, scored=rows, scored_of_row=rows, step=step, gram=None, objectives=None
        )
        batch = KVBatchMeta(keys=["p_0_0", "p_1_0"], tags=[{}, {}], partition_id="p", extra_info={"kept": 1})
        metrics: dict[str, float] = {}
        made._compute_old_log_prob_and_gradients(batch, metrics)
        assert batch.extra_info == {"kept": 1}
    assert told == [{"kept": 1, LAYERS: (3,), REDUCTION: "sum"}] * 2
    assert metrics["saw/b/gradient_norm"] == 2.0  # as it was
    assert metrics["saw/b/influence"] == 1.0  # as it counts
    assert made._step.gram.tolist() == [[0.625, 0.0], [0.0, 0.625]]  # the mean of 1 and 0.25, both ways


def make_trainer(config, monkeypatch, steps) -> SAWTrainer:
    """A trainer without verl's parts; its checkpoints are empty."""
    monkeypatch.setattr(trainer_module.PPOTrainerSync, "_save_checkpoint", lambda self: None)

    def load(self):
        self.global_steps = steps

    monkeypatch.setattr(trainer_module.PPOTrainerSync, "_load_checkpoint", load)
    made = SAWTrainer.__new__(SAWTrainer)
    made.config, made.global_steps, made.state = OmegaConf.create(config), steps, State()
    made.settings = settings()
    return made


def test_the_trainer_saves_and_restores_it(tmp_path, monkeypatch):
    config = {"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto", "resume_from_path": None}}
    first = make_trainer(config, monkeypatch, steps=4)
    first.state = State(weights=[0.25, 0.75], minima={"b": -2.0})
    first._save_checkpoint()
    second = make_trainer(config, monkeypatch, steps=4)
    second._load_checkpoint()
    assert second.state == first.state
    config["trainer"] |= {"resume_mode": "resume_path", "resume_from_path": str(tmp_path / "global_step_4")}
    config["trainer"]["default_local_dir"] = str(tmp_path / "elsewhere")
    third = make_trainer(config, monkeypatch, steps=4)
    third._load_checkpoint()
    assert third.state == first.state
    fresh = make_trainer(config, monkeypatch, steps=0)
    fresh._load_checkpoint()
    assert fresh.state == State()


def lagrangian() -> Settings:
    return Settings.model_validate(
        {
            "method": "lagrangian",
            "objectives": {"a": {"minimum": 0}, "b": {"minimum": 0}},
            "options": {"lagrangian": {"targets": [None, 1]}},
        }
    )


def test_what_a_method_remembers_is_saved_and_restored(tmp_path, monkeypatch):
    config = {"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto", "resume_from_path": None}}
    first = make_trainer(config, monkeypatch, steps=4)
    first.settings, first.state = lagrangian(), State(memory={"multipliers": [1.0, 0.1 + 0.2]})
    first._save_checkpoint()
    second = make_trainer(config, monkeypatch, steps=4)
    second.settings = lagrangian()
    second._load_checkpoint()
    assert second.state.memory == {"multipliers": [1.0, 0.1 + 0.2]}
    other = make_trainer(config, monkeypatch, steps=4)  # saw_gdpo
    with pytest.raises(ConfigError, match=r"saw\.method is 'saw_gdpo', .* another method \(multipliers\)"):
        other._load_checkpoint()


@pytest.mark.parametrize("other", [["b", "a"], ["a"], ["a", "b", "c"], ["a", "c"]])
def test_a_checkpoint_of_other_objectives_is_refused(tmp_path, monkeypatch, other):
    """Kind: weights and Gram matrices are lists, which another order of the objectives would silently mix up."""
    config = {"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto", "resume_from_path": None}}
    make_trainer(config, monkeypatch, steps=4)._save_checkpoint()
    changed = make_trainer(config, monkeypatch, steps=4)
    objectives = [{"name": name, "minimum": 0} for name in other]
    changed.settings = Settings.model_validate({"method": "saw_gdpo", "objectives": objectives})
    with pytest.raises(ConfigError, match=f"saw.objectives are {', '.join(other)}, .* checkpoint a, b"):
        changed._load_checkpoint()


def test_a_checkpoint_from_before_objectives_were_saved_is_read(tmp_path, monkeypatch):
    config = {"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto", "resume_from_path": None}}
    (tmp_path / "global_step_4").mkdir()
    (tmp_path / "global_step_4" / "saw_state.json").write_text('{"weights": [0.25, 0.75], "minima": {}, "grams": []}')
    made = make_trainer(config, monkeypatch, steps=4)
    made._load_checkpoint()
    assert made.state == State(weights=[0.25, 0.75])


def test_a_minimum_that_is_no_longer_running_is_the_configured_one():
    """Kind: a resumed training measures the CV from a minimum that was only the earlier training's."""
    made = SAWTrainer.__new__(SAWTrainer)
    made.state = State(minima={"a": -7.0, "b": -2.0})
    made.settings = settings()
    made._ranges = RewardRanges(made.settings, None)
    assert [objective.minimum for objective in made._objectives([1])] == [0.0, -2.0]


def test_the_state_is_there_before_the_checkpoint_is_complete(tmp_path, monkeypatch):
    config = {"trainer": {"default_local_dir": str(tmp_path)}}
    made = make_trainer(config, monkeypatch, steps=2)
    seen = []
    monkeypatch.setattr(
        trainer_module.PPOTrainerSync,
        "_save_checkpoint",
        lambda self: seen.append((tmp_path / "global_step_2" / "saw_state.json").exists()),
    )
    made._save_checkpoint()
    assert seen == [True]


def test_a_running_minimum_warns(caplog, monkeypatch):
    monkeypatch.setattr(trainer_module, "check_config", lambda config: settings())
    monkeypatch.setattr(trainer_module.PPOTrainerSync, "__init__", lambda self, config: None)
    with caplog.at_level(logging.WARNING):
        SAWTrainer(OmegaConf.create({"reward": {"custom_reward_function": {"path": None, "name": None}}}))
    assert "saw.objectives.b.minimum is the lowest reward seen so far" in caplog.text
    assert "saw.objectives.a" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["saw.method=static_gdpo"], "saw: options.static_weights is None; static_gdpo needs 2"),
        (
            ["saw.method=grpo", "saw.options.ema=0.5"],
            "saw: options.ema is 0.5, and grpo does not read it",
        ),
        (["saw.options.floor=0.7"], "saw: options.floor is 0.7; expected at most 1/2"),
        (["saw.options.ema=2"], "saw.options.ema: .*it is 2"),
        (["+saw.objectives.format.minimum=lowest"], "saw.objectives.*minimum"),
        (
            ["saw.options.informativeness=range_std", "+saw.objectives.format.minimum=running"],
            "informativeness is 'range_std', which needs the range of 'format'",
        ),
        (["saw.method=saw_grpo", "saw.options.gradient.mu=1"], "gradient.mu is 1.0, and saw_grpo does not read"),
        (["saw.method=gradient_grpo", "actor_rollout_ref.actor.strategy=fsdp"], "strategy is 'fsdp'.*set it to fsdp2"),
        (
            ["saw.options.informativeness=gradient_norm", "algorithm.rollout_correction.bypass_mode=true"],
            "bypass_mode is True.*set it to False",
        ),
        (["saw.method=mo_grpo", "algorithm.use_kl_in_reward=true"], "saw.method 'mo_grpo' has no summed reward"),
    ],
)
def test_what_makes_no_sense_stops_before_ray(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_config(compose("experiment=quickstart", *overrides))


def test_ranges_of_a_running_minimum():
    config = compose("experiment=quickstart", "+saw.objectives.format.minimum=running")
    assert RewardRanges.of(config, check_config(config)).at(0)[0] == (-math.inf, 1.0)
