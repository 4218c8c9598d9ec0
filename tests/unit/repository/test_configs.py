"""Every shipped configuration composes, and passes SAW's checks and verl's own."""

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError
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
    own += ["saw.options.lagrangian.targets=[null,1]"] if method == "lagrangian" else []
    settings = check_config(compose("experiment=quickstart", f"saw.method={method}", *own))
    assert settings is not None
    assert settings.method == method
    methods.check_combination(method, settings.options, 2)  # as the estimator will, once more


def test_the_tree_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose("experiment=quickstart").algorithm.adv_estimator == "saw"


@pytest.mark.slow  # Hydra reads all files anew
@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=toolrl", "saw.method=gdpo", "+saw.objectives.length={minimum: 0}", "data.seed=3"),
        ("++data.seed=4", "saw.options.profile={group_eps: 1e-4, whitening: samples}", "+mine.list=[1, ${data.seed}]"),
        ("experiment=quickstart", "~data.seed", "~reward.custom_reward_function=null", "reading=as_released"),
    ],
)
def test_the_tests_compose_as_hydra_does(monkeypatch, overrides):
    """Kind: tests of a configuration that no training would get."""
    overrides = ("platform=cpu", *overrides)
    with monkeypatch.context() as patch, initialize_config_dir(str(CONFIGS), version_base=None):
        for place, name in ((OmegaConf, "load"), (ConfigLoaderImpl, "_compose_config_from_defaults_list")):
            patch.setattr(place, name, getattr(place, name).__wrapped__)  # what tests/configs.py has replaced
        expected = hydra_compose("train", overrides=list(overrides))
    found = compose(*overrides)
    assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
    for config in (found, expected):
        with pytest.raises(ConfigAttributeError):
            config.data.no_such_key = 1
    found.data.train_files = "changed"
    assert compose(*overrides).data == expected.data
    with initialize_config_dir(str(CONFIGS), version_base=None):
        assert OmegaConf.to_yaml(hydra_compose("train", overrides=list(overrides))) == OmegaConf.to_yaml(expected)
    with pytest.raises(ConfigCompositionException, match=r"data\.no_such_key"):
        compose("data.no_such_key=1")


#: Name of a training of the paper's tables -> its overrides.
ROWS = {
    **{
        f"{size}_{method}": ("experiment=toolrl", f"model=qwen2.5-{size}", f"saw.method={method}")
        for size in ("1.5b", "3b")
        for method in METHODS
    },
    **{method: ("experiment=tldr", f"saw.method={method}") for method in METHODS},
}


@pytest.mark.parametrize("row", ["1.5b_gdpo", "3b_saw_grpo", "saw_gdpo"])
def test_a_row_has_its_own_model_name_and_folder(row, monkeypatch):
    """Kind: two rows of a table in one folder, or a row with the model of another."""
    monkeypatch.setenv("SAW_RUNS", "/runs")
    config = compose(*ROWS[row], "data.seed=3")
    table = ROWS[row][0].partition("=")[2]
    assert config.saw.method == row.rpartition("b_")[2]
    assert config.trainer.experiment_name == f"{row}_seed3"
    assert config.trainer.default_local_dir == f"/runs/{table}/{row}_seed3"
    assert config.actor_rollout_ref.model.path == f"Qwen/Qwen2.5-{'3B' if row.startswith('3b') else '1.5B'}-Instruct"


@pytest.mark.slow
# Every row on every size of node would be 108 compositions: sizes and readings take turns, and one row sees all.
@pytest.mark.parametrize(
    ("row", "nodes", "gpus", "reading"),
    [
        *((row, *((1, 4), (1, 8), (2, 8))[place % 3], "controlled") for place, row in enumerate(ROWS)),
        *((row, 1, 4, "as_released") for row in ROWS),
        *(("1.5b_grpo", nodes, gpus, "controlled") for nodes, gpus in ((1, 8), (2, 8))),
    ],
)
def test_tables_pass_verls_checks_at_full_size(row, nodes, gpus, reading):
    overrides = [*ROWS[row], f"trainer.nnodes={nodes}", f"trainer.n_gpus_per_node={gpus}"]
    config = compose("platform=gpu", f"reading={reading}", *overrides)
    settings = check_config(config)
    assert settings is not None
    assert config.trainer.experiment_name == f"{row}_seed1"
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
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_reading_has_the_last_word_in_every_experiment(experiment):
    """Kind: a reading is set only in part; one of its values keeps the experiment's or the default value."""
    for place, reading in enumerate(READINGS):
        config = compose(f"experiment={experiment}", f"reading={reading}")
        found = {key: OmegaConf.select(config, key) for key in OF_A_READING}
        assert found == {key: values[place] for key, values in OF_A_READING.items()}
        gpus = compose("platform=gpu", f"experiment={experiment}", f"reading={reading}").trainer.n_gpus_per_node
        assert gpus == READINGS[reading] or (
            experiment in ("quickstart", "short_answers", "study") and reading == "controlled"
        )
    own = compose(f"experiment={experiment}", "reading=as_released", "data.truncation=right")
    assert own.data.truncation == "right"  # but for the command line


def test_every_table_is_controlled_unless_it_is_told():
    for experiment in ("toolrl", "tldr"):
        assert compose(f"experiment={experiment}").saw.kl_in_reward == "combined"


def test_the_released_reading_has_no_dual_clip():
    """verl's dual clip applies where the plain clip does not: a ratio above clip_ratio_c with a negative advantage."""
    config = compose("experiment=toolrl", "reading=as_released").actor_rollout_ref.actor
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
