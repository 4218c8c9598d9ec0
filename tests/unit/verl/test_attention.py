"""Which attention a training gets, and what is refused."""

import importlib.machinery
import json
import re
import sys
import types

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import GPT2Config, Qwen2Config
from verl.utils.config import omega_conf_to_dataclass

from saw.machine import environment
from saw.records import run_info
from saw.runs import train
from saw.verl import attention
from saw.verl.attention import KEY, choose
from saw.verl.config import ConfigError
from tests.configs import compose

BASE = ("platform=gpu", "experiment=toolrl", "saw.method=gradient_gdpo")
FUSED = "actor_rollout_ref.model.use_fused_kernels"
ULYSSES = "ulysses_sequence_parallel_size=2"
FLOAT32 = "fsdp_config.mixed_precision={param_dtype: fp32}"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The folder of a model whose configuration can be read; there are no weights in it."""
    folder = tmp_path_factory.mktemp("model")
    Qwen2Config(tie_word_embeddings=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def gpu(model):
    """Table 1's training for a GPU node, with overrides."""
    return lambda *overrides: changed(BASE, f"actor_rollout_ref.model.path={model}", *overrides)


def changed(base: tuple[str, ...], *overrides: str) -> DictConfig:
    """A configuration with overrides that may add a key, without a plus."""
    config = compose(*base)
    OmegaConf.set_struct(config, False)
    config.merge_with_dotlist([override.lstrip("+") for override in overrides])
    return config


@pytest.fixture
def flash_attn(monkeypatch):
    """Makes a version of flash-attn importable."""

    def install(version: str = "2.8.3", **names: object) -> None:
        module = types.ModuleType("flash_attn")
        module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
        module.__dict__.update(names or {"flash_attn_varlen_func": print})
        monkeypatch.setitem(sys.modules, "flash_attn", module)
        monkeypatch.setattr(attention, "version", lambda distribution: version)

    return install


def test_flash_attention_where_it_is_installed(gpu, flash_attn):
    flash_attn()
    choice = choose(gpu())
    assert (choice.name, choice.fused) == ("flash_attention_2", False)
    assert "2.8.3" in choice.reason


def no_flash_attn(monkeypatch, flash_attn):
    monkeypatch.setitem(sys.modules, "flash_attn", None)


def built_for_another_torch(monkeypatch, flash_attn):
    class Loader(importlib.machinery.SourceFileLoader):
        def exec_module(self, module):
            raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c10")

    class Finder:
        def find_spec(self, name, path=None, target=None):
            return importlib.machinery.ModuleSpec(name, Loader(name, "")) if name == "flash_attn" else None

    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def only_flash_attn_4(monkeypatch, flash_attn):
    flash_attn(cute=object())


def too_old(monkeypatch, flash_attn):
    flash_attn("2.3.6")


def before_ampere(monkeypatch, flash_attn):
    flash_attn()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T4")


ABSENT = [
    (no_flash_attn, "flash-attn can't be imported"),
    (built_for_another_torch, "undefined symbol"),
    (only_flash_attn_4, "flash_attn_varlen_func"),
    (too_old, r"2\.3\.6.*2\.4\.3"),
    (before_ampere, r"T4 has \(7, 5\)"),
]


@pytest.mark.parametrize(("absent", "says"), ABSENT)
def test_sdpa_where_it_cannot_work_with_the_reason_the_cost_and_the_remedy(gpu, flash_attn, monkeypatch, absent, says):
    absent(monkeypatch, flash_attn)
    config = gpu()
    choice = choose(config)
    assert (choice.name, choice.fused) == ("sdpa", True)
    for part in (says, "quadratic", "fused", re.escape(environment.flash_attn())):
        assert re.search(part, choice.reason), part
    assert "\n" not in choice.reason
    attention.apply(config, choice)
    assert OmegaConf.select(config, KEY) == "sdpa"
    assert config.actor_rollout_ref.model.use_remove_padding
    assert config.actor_rollout_ref.actor.use_fused_kernels  # verl's actor reads it from the model's section
    assert choose(config).name == "sdpa"  # what was written is a setting like another


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flash_attention_4"])
def test_flash_attention_that_was_asked_for_and_is_absent_is_refused(gpu, monkeypatch, flash_attn, name):
    no_flash_attn(monkeypatch, flash_attn)
    with pytest.raises(ConfigError, match=rf"{KEY} is '{name}': .*can't be imported"):
        choose(gpu(f"+{KEY}={name}"))


@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention"])
def test_what_a_user_sets_is_kept_with_all_beside_it(gpu, flash_attn, name):
    flash_attn()
    config = gpu(f"+{KEY}={name}")
    choice = choose(config)
    assert (choice.name, choice.fused) == (name, False)
    attention.apply(config, choice)
    assert not OmegaConf.select(config, FUSED)


def test_null_chooses(gpu, flash_attn):
    flash_attn()
    assert choose(gpu(f"+{KEY}=null")).name == "flash_attention_2"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("spda", "expected one of .*sdpa"),
        ("paged|sdpa", "expected one of"),
        ("SDPA", "expected one of .*sdpa"),
        ("kernels-community/flash-attn2", "pip install kernels"),
        ("someone/attention", "only flash attention is known"),
    ],
)
def test_what_is_no_attention_for_a_training_is_refused(gpu, monkeypatch, name, says):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=says):
        choose(gpu(f"+{KEY}='{name}'"))


def test_a_number_is_no_attention(gpu):
    with pytest.raises(ConfigError, match="is 3: expected a name"):
        choose(gpu(f"+{KEY}=3"))


def test_a_flash_attention_of_the_hub_is_one(gpu, monkeypatch):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name == "kernels")
    kernel = "kernels-community/flash-attn2"
    assert choose(gpu(f"+{KEY}={kernel}", f"actor_rollout_ref.actor.{ULYSSES}")).name == kernel


#: Overrides of sequence parallelism -> the key that is named; verl reads both places.
PARALLEL = [
    ([f"actor_rollout_ref.actor.{ULYSSES}"], "actor_rollout_ref.actor.ulysses"),
    ([f"actor_rollout_ref.actor.fsdp_config.{ULYSSES}"], "actor_rollout_ref.actor.fsdp_config.ulysses"),
    ([f"actor_rollout_ref.ref.{ULYSSES}"], "actor_rollout_ref.ref.ulysses"),
    ([f"actor_rollout_ref.ref.fsdp_config.{ULYSSES}"], "actor_rollout_ref.ref.fsdp_config.ulysses"),
]


@pytest.mark.parametrize("asked", [[], [f"+{KEY}=sdpa"], [f"+{KEY}=eager"], [f"+{KEY}=flex_attention"]])
@pytest.mark.parametrize(("overrides", "key"), PARALLEL)
def test_sequence_parallelism_without_flash_attention_is_refused(gpu, monkeypatch, flash_attn, overrides, key, asked):
    no_flash_attn(monkeypatch, flash_attn)
    with pytest.raises(ConfigError, match=rf"{key}_sequence_parallel_size is 2.*silently wrong.*Set it to 1"):
        choose(gpu(*overrides, *asked))


@pytest.mark.parametrize(("overrides", "key"), PARALLEL)
def test_sequence_parallelism_with_flash_attention_is_verls_affair(gpu, flash_attn, overrides, key):
    flash_attn()
    assert choose(gpu(*overrides)).name == "flash_attention_2"


def test_a_reference_that_the_training_does_not_have_is_not_looked_at(gpu, monkeypatch, flash_attn):
    no_flash_attn(monkeypatch, flash_attn)
    without = ["actor_rollout_ref.actor.use_kl_loss=False", "algorithm.use_kl_in_reward=False"]
    assert choose(gpu(f"actor_rollout_ref.ref.{ULYSSES}", *without)).name == "sdpa"


@pytest.mark.parametrize("role", ["actor", "ref"])
def test_flash_attention_in_32_bits_cannot_work(gpu, flash_attn, role):
    flash_attn()
    override = f"+actor_rollout_ref.{role}.{FLOAT32}"
    choice = choose(gpu(override))
    assert choice.name == "sdpa"
    assert f"actor_rollout_ref.{role}.fsdp_config.mixed_precision.param_dtype is 'fp32'" in choice.reason
    with pytest.raises(ConfigError, match="16 bits"):
        choose(gpu(override, f"+{KEY}=flash_attention_2"))


@pytest.mark.parametrize("enable", [["critic.enable=True"], ["algorithm.adv_estimator=gae"]])
def test_a_critic_needs_flash_attention_whatever_the_actor_has(gpu, monkeypatch, flash_attn, enable):
    """verl.utils.model.load_valuehead_model asks for it by name."""
    flash_attn()
    assert choose(gpu(*enable)).name == "flash_attention_2"
    assert choose(gpu(*enable, f"+{KEY}=sdpa")).name == "sdpa"
    with pytest.raises(ConfigError, match=r"critic\.fsdp\.mixed_precision"):
        choose(gpu(*enable, "+critic.fsdp.mixed_precision={param_dtype: fp32}"))
    no_flash_attn(monkeypatch, flash_attn)
    with pytest.raises(ConfigError, match=r"critic\.enable"):
        choose(gpu(*enable))


@pytest.mark.parametrize("engine", ["megatron", "veomni", "torchtitan"])
def test_other_engines_are_left_alone(monkeypatch, flash_attn, engine):
    no_flash_attn(monkeypatch, flash_attn)
    assert choose(compose(*BASE, f"model_engine={engine}")) is None


def test_an_npu_is_left_alone(gpu, monkeypatch):
    monkeypatch.setattr(attention, "is_torch_npu_available", lambda: True)
    assert choose(gpu()) is None


def untied(path) -> list[str]:
    Qwen2Config(tie_word_embeddings=False).save_pretrained(path)
    return [f"actor_rollout_ref.model.path={path}"]


def another_model_type(path) -> list[str]:
    GPT2Config().save_pretrained(path)
    return [f"actor_rollout_ref.model.path={path}"]


@pytest.mark.parametrize(
    ("why_not", "says"),
    [
        (untied, "separate output layer"),
        (another_model_type, "model type 'gpt2'"),
        (lambda path: [f"actor_rollout_ref.model.path={path / 'absent'}"], "can't be read"),
        (lambda path: ["actor_rollout_ref.actor.strategy=fsdp"], "strategy is 'fsdp'"),
        (lambda path: ["actor_rollout_ref.model.lora_rank=8"], "lora_rank is 8"),
        (lambda path: ["+actor_rollout_ref.model.override_config.tie_word_embeddings=False"], "separate output layer"),
        (lambda path: ["++actor_rollout_ref.actor.calculate_sum_pi_squared=True"], "calculate_sum_pi_squared"),
    ],
)
def test_fused_kernels_only_where_they_are_known_to_work(gpu, monkeypatch, flash_attn, tmp_path, why_not, says):
    no_flash_attn(monkeypatch, flash_attn)
    choice = choose(gpu(*why_not(tmp_path)))
    assert (choice.name, choice.fused) == ("sdpa", False)
    assert "token by token" in choice.reason
    assert says in choice.reason


BACKEND = "actor_rollout_ref.model.fused_kernel_options.impl_backend"


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("asked", [[], [f"+{KEY}=sdpa"]])
@pytest.mark.parametrize("fused", [True, False])
def test_fused_kernels_that_a_user_has_set_are_kept(gpu, monkeypatch, flash_attn, fused, asked, installed):
    """Kind: a user's False is not distinguished from the default."""
    flash_attn() if installed else no_flash_attn(monkeypatch, flash_attn)
    config = gpu(f"{FUSED}={fused}", f"{BACKEND}=triton", *asked)
    choice = choose(config)
    attention.apply(config, choice)
    assert OmegaConf.select(config, FUSED) is fused
    assert config.actor_rollout_ref.actor.use_fused_kernels is fused
    assert OmegaConf.select(config, BACKEND) == "triton"
    assert (f"{FUSED} is" in choice.reason) == (fused or not installed)  # where it matters, it is said
    assert choose(config).fused is fused


@pytest.mark.parametrize(
    ("installed", "asked", "fused"),
    [(True, [], False), (False, [], True), (False, [f"+{KEY}=sdpa"], True), (True, [f"+{KEY}=sdpa"], False)],
)
def test_fused_kernels_that_are_left_open_are_chosen_and_written(gpu, monkeypatch, flash_attn, installed, asked, fused):
    """Kind: one user setting prevents another choice. verl gets True or False, never null."""
    flash_attn() if installed else no_flash_attn(monkeypatch, flash_attn)
    for backend in (f"{BACKEND}=null", f"{BACKEND}=liger"):
        config = gpu(*asked, backend)
        assert OmegaConf.select(config, FUSED) is None
        attention.apply(config, choose(config))
        assert OmegaConf.select(config, FUSED) is fused
        expected = {True: "torch", False: None}[fused] if backend.endswith("null") else "liger"
        assert OmegaConf.select(config, BACKEND) == expected


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (untied, f"{FUSED} is True, and the model has a separate output layer.*False.*null"),
        (lambda path: ["+actor_rollout_ref.model.override_config.tie_word_embeddings=False"], f"{FUSED} is True, and"),
        (lambda path: ["++actor_rollout_ref.actor.calculate_sum_pi_squared=True"], "calculate_sum_pi_squared"),
        (lambda path: [f"{BACKEND}=trition"], "impl_backend is 'trition'; expected one of torch, triton, liger"),
    ],
)
def test_fused_kernels_that_were_asked_for_and_cannot_work_are_refused(
    gpu, monkeypatch, flash_attn, tmp_path, wrong, says, installed
):
    flash_attn() if installed else no_flash_attn(monkeypatch, flash_attn)
    overrides = wrong(tmp_path)
    with pytest.raises(ConfigError, match=says):
        choose(gpu(f"{FUSED}=True", *overrides))
    choose(gpu(f"{FUSED}=False", *overrides))


@pytest.mark.parametrize("untried", [another_model_type, lambda path: [f"actor_rollout_ref.model.path={path / 'no'}"]])
def test_fused_kernels_that_nobody_has_tried_are_the_users_to_try(gpu, flash_attn, tmp_path, untried):
    flash_attn()
    assert choose(gpu(f"{FUSED}=True", *untried(tmp_path))).fused


@pytest.mark.parametrize("value", ["auto", "3"])
def test_what_is_no_truth_value_for_the_fused_kernels_is_refused(gpu, flash_attn, value):
    flash_attn()
    with pytest.raises(ConfigError, match=f"{FUSED} is .*{value}.*expected True, False, or null"):
        choose(gpu(f"{FUSED}={value}"))


def test_the_actors_own_switch_which_verl_does_not_read_is_refused_where_it_says_something_else(gpu, flash_attn):
    flash_attn()
    own = "actor_rollout_ref.actor.use_fused_kernels"
    for there in ("null", "False"):
        with pytest.raises(ConfigError, match=f"{own} is True and {FUSED} is {there.replace('null', 'None')}"):
            choose(gpu(f"{own}=True", f"{FUSED}={there}"))
    assert choose(gpu(f"{own}=True", f"{FUSED}=True")).fused


@pytest.mark.parametrize("engine", ["megatron", "veomni"])
def test_another_engine_gets_verls_own_default_of_the_fused_kernels(engine):
    config = compose(*BASE, f"model_engine={engine}")
    attention.apply(config, choose(config))
    assert OmegaConf.select(config, FUSED) is False
    assert OmegaConf.select(config, KEY) is None


def test_a_cpu_has_sdpa_and_neither_flash_nor_flex_attention(flash_attn):
    flash_attn()
    base = ("experiment=quickstart",)
    assert choose(changed(base)) == attention.Attention("sdpa", False, "trainer.device is cpu")
    assert choose(changed(base, f"{KEY}=eager")) == attention.Attention("eager", False, f"{KEY} is set")
    assert choose(changed(base, f"{KEY}=null")) == attention.Attention("sdpa", False, "trainer.device is cpu")
    for name in ("flash_attention_2", "flex_attention"):
        with pytest.raises(ConfigError, match=rf"is '{name}'.*CPU|is '{name}'.*cpu"):
            choose(changed(base, f"{KEY}={name}"))


def test_the_choice_is_said_in_one_line_and_is_in_run_json(gpu, monkeypatch, flash_attn, capsys, tmp_path):
    no_flash_attn(monkeypatch, flash_attn)
    monkeypatch.setenv(train.REASON, "torch can use 4 x NVIDIA H100")
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
    monkeypatch.setenv("SAW_PLATFORM", "gpu")
    config = gpu(f"trainer.default_local_dir={tmp_path}")
    train._choose(config)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "attention sdpa: flash-attn can't be imported" in said
    run_info.write(config, {}, 1)
    written = json.loads((tmp_path / "run.json").read_text())["config"]
    assert written["chosen"]["platform"] == "torch can use 4 x NVIDIA H100"
    assert written["chosen"]["attention"].startswith("sdpa: flash-attn can't be imported")
    assert written["actor_rollout_ref"]["model"]["override_config"]["attn_implementation"] == "sdpa"
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).use_fused_kernels


@pytest.fixture
def start(monkeypatch, tmp_path, toy_model, toy_data):
    """Starts a quickstart training that ends where verl would begin, and returns verl's configuration."""
    from verl.trainer import main_ppo

    import saw.verl  # noqa: F401

    started: list[DictConfig] = []
    monkeypatch.setattr(main_ppo, "run_ppo", lambda config, task_runner_class: started.append(config))
    monkeypatch.setattr(train, "_fork_workers", lambda config: None)
    monkeypatch.delenv("SAW_PLATFORM", raising=False)
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "run" / "metrics.jsonl"))

    def run(*overrides: str) -> DictConfig:
        paths = f"actor_rollout_ref.model.path={toy_model}", f"trainer.default_local_dir={tmp_path / 'run'}"
        paths += f"data.train_files={toy_data[0]}", f"data.val_files={toy_data[1]}"
        train.main(changed(("experiment=quickstart",), *paths, *overrides))
        return started[0]

    return run


def test_verl_is_started_with_the_choice(start):
    config = start(f"{KEY}=null")
    assert OmegaConf.select(config, KEY) == "sdpa"
    assert config.chosen.attention == "sdpa: trainer.device is cpu"


@pytest.mark.parametrize(("platform", "device"), [("gpu", "cpu"), ("cpu", "cuda")])
def test_a_configuration_for_another_platform_than_verls_is_refused(start, monkeypatch, platform, device):
    monkeypatch.setenv("SAW_PLATFORM", platform)
    with pytest.raises(ConfigError, match=f"trainer.device is '{device}'.*{platform}.*SAW_PLATFORM"):
        start(f"trainer.device={device}")


def test_a_start_with_an_attention_that_cannot_work_leaves_nothing_behind(start, tmp_path):
    with pytest.raises(ConfigError, match=f"{KEY} is 'flash_attention_2'"):
        start(f"{KEY}=flash_attention_2")
    assert not (tmp_path / "run").exists()
