"""Every shipped configuration composes, and passes SAW's checks and verl's own."""

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from saw.methods import METHODS
from saw.verl.settings import check_config
from tests.configs import EXPERIMENTS, compose


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


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_one_override(method):
    settings = check_config(compose("experiment=quickstart", f"saw.method={method}"))
    assert settings is not None
    assert settings.method == method


def test_the_tree_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose("experiment=quickstart").algorithm.adv_estimator == "saw"


def test_quickstart_runs_on_the_sizes_it_names():
    config = compose("experiment=quickstart")
    rollout = config.actor_rollout_ref.rollout
    assert rollout.max_model_len == config.data.max_prompt_length + config.data.max_response_length
