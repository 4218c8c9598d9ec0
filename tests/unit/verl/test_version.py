"""What an older verl lacks, by a stand-in of it: its validation, its group filter, its asynchronous trainer."""

import math
import os
import subprocess
import sys

import pytest

from saw.verl import trainer as trainer_module
from saw.verl import version
from saw.verl.config import ConfigError, Settings
from saw.verl.config_checks import check_config
from saw.verl.trainer import SAWTrainer
from tests.configs import compose
from tests.conftest import ROOT
from tests.unit.verl.test_async import COLOCATE, SEPARATE, quickstart

NAN = math.nan


def validated(monkeypatch, of_verl, **more):
    """The metrics of a validation of two samples, one without a reward."""
    monkeypatch.setattr(trainer_module.PPOTrainer, "_val_metrics_update", of_verl)
    monkeypatch.setattr(trainer_module.validation_samples, "log", lambda *_: None)
    trainer = SAWTrainer.__new__(SAWTrainer)
    trainer.settings = Settings(method="gdpo", objectives={"format": {"minimum": 0}})
    trainer.config, trainer.global_steps, trainer._val_texts = compose(), 1, ([], [])
    infos = {"format": [1.0, NAN], "score": [1.0, 0.0], "text": ["a", "b"]}
    return trainer._val_metrics_update(["d", "d"], ["u", "v"], infos, {}, **more)


def test_a_validation_that_counts_no_samples_and_averages_no_none(monkeypatch):
    """Kind: an argument and a value that an older verl does not take; what it can't average stays NaN."""
    monkeypatch.setattr(version, "VALIDATION_COUNTS_SAMPLES", False)
    seen = {}

    def old(self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns):
        seen.update(reward_extra_infos_dict)
        return {"val-core/d/reward/mean@1": 0.5}

    metrics = validated(monkeypatch, old)
    assert seen == {
        "format": [1.0, pytest.approx(NAN, nan_ok=True)],
        "score": [1.0, pytest.approx(NAN, nan_ok=True)],
        "text": ["a", "b"],
    }
    assert metrics["val-core/d/reward/mean@1"] == 0.5
    assert metrics["saw-val/format/mean"] == 1.0
    assert metrics["saw-val/format/missing"] == 1.0
    assert math.isnan(metrics["saw-val/lost"])


def test_a_validation_that_does(monkeypatch):
    monkeypatch.setattr(version, "VALIDATION_COUNTS_SAMPLES", True)
    seen = {}

    def new(self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None):
        seen.update(reward_extra_infos_dict)
        return {}

    metrics = validated(monkeypatch, new, expected_acc_counts={("d", "u"): 2, ("d", "v"): 1})
    assert seen["format"] == [1.0, None]
    assert metrics["saw-val/lost"] == 1.0


def test_a_trainer_that_is_another_is_refused(monkeypatch):
    monkeypatch.setattr(version, "SEPARATE_ASYNC", False)
    with pytest.raises(ConfigError, match=r"trainer_mode is 'saw_separate_async', which needs verl 0\.9\.1.*'saw'"):
        check_config(quickstart(SEPARATE))
    assert check_config(quickstart(COLOCATE)) is not None


def test_a_training_with_another_verl_ends_with_one_message(tmp_path):
    other = tmp_path / "verl"
    other.mkdir()
    (other / "__init__.py").write_text("__version__ = '0.8.0'\nimport saw.verl\n")
    ended = subprocess.run(
        [sys.executable, "-m", "saw.runs.train", "experiment=quickstart"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "SAW_PLATFORM": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "\nsaw: the SAW plug-in needs verl 0.9.0 or 0.9.1, but verl 0.8.0 is installed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("but verl 0.8.0 is installed") == 1


@pytest.mark.parametrize(("metric", "allowed"), [("reward", False), ("score", True), ("format", True)])
def test_the_scalar_of_the_group_filter(monkeypatch, metric, allowed):
    config = compose("algorithm.filter_groups.enable=true", f"algorithm.filter_groups.metric={metric}")
    assert check_config(config) is not None
    monkeypatch.setattr(version, "FILTER_KNOWS_REWARD", False)
    if allowed:
        assert check_config(config) is not None
        return
    with pytest.raises(ConfigError, match=r"filter_groups\.metric is 'reward'.*set it to one of score, format"):
        check_config(config)
