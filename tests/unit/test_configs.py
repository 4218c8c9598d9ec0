"""Every shipped configuration composes, and passes SAW's checks and verl's own."""

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from recipes.reproduce import METHODS
from saw import methods
from saw.verl.settings import check_config
from tests.configs import CONFIGS, EXPERIMENTS, compose


@pytest.fixture(autouse=True)
def key_of_the_judge(monkeypatch):
    """The summarisation experiments look for it before anything starts."""
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")


def test_there_are_experiments():
    assert "quickstart" in EXPERIMENTS


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
        assert f"python -m saw.train experiment={name}\n" in (CONFIGS / "experiment" / f"{name}.yaml").read_text()


TABLE_2 = [f"tldr/{method}" for method in METHODS]


def test_every_row_of_table_2_has_its_experiment_and_command():
    assert [name for name in EXPERIMENTS if name.startswith("tldr/")] == sorted(TABLE_2)
    for name in TABLE_2:
        assert f"python -m saw.train experiment={name}\n" in (CONFIGS / "experiment" / f"{name}.yaml").read_text()


ROWS = [*TABLE_1, *TABLE_2]


# Every row on every size of node would be 108 compositions: sizes and KL terms take turns, and one row sees all.
@pytest.mark.parametrize(
    ("experiment", "nodes", "gpus", "kl"),
    [
        *((row, *((1, 4), (1, 8), (2, 8))[place % 3], "controlled") for place, row in enumerate(ROWS)),
        *((row, 1, 4, "as_released") for row in ROWS),
        *((ROWS[0], nodes, gpus, "controlled") for nodes, gpus in ((1, 8), (2, 8))),
    ],
)
def test_tables_pass_verls_checks_at_full_size(experiment, nodes, gpus, kl):
    overrides = [f"experiment={experiment}", f"kl={kl}", f"trainer.nnodes={nodes}", f"trainer.n_gpus_per_node={gpus}"]
    config = compose("platform=gpu", *overrides)
    settings = check_config(config)
    assert settings is not None
    size = "3b" if "3B" in config.actor_rollout_ref.model.path else "1.5b"
    assert experiment in (f"toolrl/{size}_{settings.method}", f"tldr/{settings.method}")
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert need_reference_policy(config)
    assert config.algorithm.use_kl_in_reward == (kl == "as_released")
    assert config.actor_rollout_ref.actor.use_kl_loss == (kl == "controlled")
    assert settings.feels_kl_in_reward == (kl == "controlled" or settings.method == "grpo")


def test_quickstart_runs_on_the_sizes_it_names():
    config = compose("experiment=quickstart")
    rollout = config.actor_rollout_ref.rollout
    assert rollout.max_model_len == config.data.max_prompt_length + config.data.max_response_length
