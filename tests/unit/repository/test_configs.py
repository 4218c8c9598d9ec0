"""Every shipped configuration composes, and passes SAW's checks and verl's own."""

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.config import ActorConfig

from recipes.common.reproduce import METHODS, READINGS
from saw.method import registry as methods
from saw.verl.config_checks import check_config
from tests.configs import CONFIGS, EXPERIMENTS, compose


@pytest.fixture(autouse=True)
def key_of_the_judge(monkeypatch):
    """The summarisation experiments look for it before anything starts."""
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")


def test_there_are_experiments():
    assert "quickstart" in EXPERIMENTS


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_passes_the_checks(experiment, platform, tmp_path, toy_model):
    config = compose(f"experiment={experiment}", f"platform={platform}", f"actor_rollout_ref.model.path={toy_model}")
    OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert check_config(config) is not None
    validate_config(config, need_reference_policy(config), need_critic(config))
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_is_one_override(method):
    own = ["saw.options.static_weights=[1,3]"] if method.startswith("static") else []
    settings = check_config(compose("experiment=quickstart", f"saw.method={method}", *own))
    assert settings is not None
    assert settings.method == method
    methods.check_combination(method, settings.options, 2)  # as the estimator will, once more


def test_the_tree_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose("experiment=quickstart").algorithm.adv_estimator == "saw"


TABLE_1 = [f"toolrl/{size}_{method}" for size in ("1.5b", "3b") for method in METHODS]


def test_every_cell_of_table_1_has_its_experiment_and_command():
    assert [name for name in EXPERIMENTS if name.startswith("toolrl/")] == sorted(TABLE_1)
    for name in TABLE_1:
        assert f"python -m saw train experiment={name}\n" in (CONFIGS / "experiment" / f"{name}.yaml").read_text()


TABLE_2 = [f"tldr/{method}" for method in METHODS]


def test_every_row_of_table_2_has_its_experiment_and_command():
    assert [name for name in EXPERIMENTS if name.startswith("tldr/")] == sorted(TABLE_2)
    for name in TABLE_2:
        assert f"python -m saw train experiment={name}\n" in (CONFIGS / "experiment" / f"{name}.yaml").read_text()


ROWS = [*TABLE_1, *TABLE_2]


@pytest.mark.slow
# Every row on every size of node would be 108 compositions: sizes and readings take turns, and one row sees all.
@pytest.mark.parametrize(
    ("experiment", "nodes", "gpus", "reading"),
    [
        *((row, *((1, 4), (1, 8), (2, 8))[place % 3], "controlled") for place, row in enumerate(ROWS)),
        *((row, 1, 4, "as_released") for row in ROWS),
        *((ROWS[0], nodes, gpus, "controlled") for nodes, gpus in ((1, 8), (2, 8))),
    ],
)
def test_tables_pass_verls_checks_at_full_size(experiment, nodes, gpus, reading):
    overrides = [f"experiment={experiment}", f"trainer.nnodes={nodes}", f"trainer.n_gpus_per_node={gpus}"]
    config = compose("platform=gpu", f"reading={reading}", *overrides)
    settings = check_config(config)
    assert settings is not None
    size = "3b" if "3B" in config.actor_rollout_ref.model.path else "1.5b"
    assert experiment in (f"toolrl/{size}_{settings.method}", f"tldr/{settings.method}")
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert need_reference_policy(config)
    assert config.algorithm.use_kl_in_reward == (reading == "as_released")
    assert config.actor_rollout_ref.actor.use_kl_loss == (reading == "controlled")
    assert settings.feels_kl_in_reward == (reading == "controlled" or settings.method == "grpo")
    assert settings.options.profile == ("released" if reading == "as_released" else "paper")


#: Key -> its value in each reading: what the two differ in, by docs/papers.md.
OF_A_READING = {
    "saw.kl_in_reward": ("combined", "grpo_only"),
    "saw.options.profile": ("paper", "released"),
    "saw.options.gradient.clip": (None, 1.0),
    "saw.options.gradient.reduction": ("mean", "sum"),
    "algorithm.use_kl_in_reward": (False, True),
    "actor_rollout_ref.actor.use_kl_loss": (True, False),
    "data.filter_overlong_prompts": (True, False),
    "data.truncation": ("error", "left"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", ["toolrl/1.5b_grpo", "toolrl/3b_gradient_gdpo", "tldr/saw_gdpo", "quickstart", "study"]
)
def test_a_reading_has_the_last_word_in_every_experiment(experiment):
    """A reading that is set in part: another of its values is left at the experiment's or at the default."""
    for place, reading in enumerate(READINGS):
        config = compose(f"experiment={experiment}", f"reading={reading}")
        found = {key: OmegaConf.select(config, key) for key in OF_A_READING}
        assert found == {key: values[place] for key, values in OF_A_READING.items()}
        gpus = compose("platform=gpu", f"experiment={experiment}", f"reading={reading}").trainer.n_gpus_per_node
        assert gpus == READINGS[reading] or (experiment in ("quickstart", "study") and reading == "controlled")
    own = compose(f"experiment={experiment}", "reading=as_released", "data.truncation=right")
    assert own.data.truncation == "right"  # but for the command line


def test_every_table_is_controlled_unless_it_is_told():
    for row in (TABLE_1[0], TABLE_2[0]):
        assert compose(f"experiment={row}").saw.kl_in_reward == "combined"


def test_the_released_reading_has_no_dual_clip():
    """verl's dual clip touches what the plain clip leaves: a ratio above clip_ratio_c with a negative advantage."""
    config = compose("experiment=toolrl/1.5b_grpo", "reading=as_released").actor_rollout_ref.actor
    old = torch.zeros(1, 6)
    new = torch.tensor([[-30.0, -0.1, 0.1, 1.5, 19.9, 50.0]], requires_grad=True)  # verl limits the difference to 20
    ratio = new.detach().clamp(-20, 20).exp()
    for advantage in (-2.0, 2.0):
        actor = ActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio=config.clip_ratio,
            clip_ratio_low=config.clip_ratio_low,
            clip_ratio_high=config.clip_ratio_high,
            clip_ratio_c=config.clip_ratio_c,
        )
        advantages = torch.full((1, 6), advantage)
        found, _ = compute_policy_loss_vanilla(old, new, advantages, torch.ones(1, 6), config=actor)
        plain = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
        torch.testing.assert_close(found.detach(), plain)


def test_quickstart_runs_on_the_sizes_it_names():
    config = compose("experiment=quickstart")
    rollout = config.actor_rollout_ref.rollout
    assert rollout.max_model_len == config.data.max_prompt_length + config.data.max_response_length
