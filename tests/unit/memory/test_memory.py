"""The estimate of a training's memory: its arithmetic, what it says of a machine, and what its document shows."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, Qwen2Config

from recipes.common import reproduce as common
from recipes.tldr import reproduce as table2
from recipes.toolrl import reproduce as table1
from saw import memory
from saw.machine import accelerator
from saw.memory import SHAPES, Shape, estimate, fits, largest_tokens, read_settings, report, shape_of, usable
from saw.memory.__main__ import main
from saw.memory.phases import GIB
from tests.configs import compose
from tests.conftest import ROOT

EXPERIMENT = ("platform=gpu", "experiment=toolrl")
MODEL = SHAPES["qwen2.5-1.5b"]
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
}


@pytest.fixture(scope="module")
def config():
    return compose(*EXPERIMENT)


def changed(config, *pairs):
    config = config.copy()
    for key, value in pairs:
        OmegaConf.update(config, key, value, force_add=True)
    return config


def found_of(config, gpus=4, model=MODEL, **changes):
    found = estimate(config, model, gpus, flash_attn=True)
    return replace(found, settings=replace(found.settings, **changes))


def phase(found, name):
    return next(phase for phase in found.phases if phase.name == name)


@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-1.5b", 1.54), ("qwen2.5-3b", 3.09)])
def test_a_shape_has_its_model_s_parameters(name, billions):
    """Counted by transformers, on a device without memory; and the number that the model's card gives."""
    shape = SHAPES[name]
    config = Qwen2Config(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert round(shape.parameters / 1e9, 2) == billions


@pytest.mark.parametrize(
    "sizes",
    [
        {"model_type": "qwen2", "tie_word_embeddings": False},
        {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 32},
        {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True},
    ],
)
def test_a_folder_s_config_gives_the_shape(tmp_path, sizes):
    """Kind: a field that other models leave out or use differently. Llama's biases in o_proj are not Qwen2's."""
    (tmp_path / "config.json").write_text(json.dumps(SIZES | sizes))
    from transformers import AutoConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    counted = sum(parameter.numel() for name, parameter in model.named_parameters() if name[-11:] != "o_proj.bias")
    assert shape_of(str(tmp_path)).parameters == counted


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_a_model_with_experts_is_not_taken_for_one_without(tmp_path, key):
    """Kind: an estimate that is far too small without any sign of it."""
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {key: 128}))
    with pytest.raises(ValueError, match=f"{key}: 128"):
        shape_of(str(tmp_path))


def test_a_folder_with_a_known_model_s_name_is_what_is_in_it(tmp_path):
    folder = tmp_path / "Qwen2.5-1.5B-Instruct"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZES))
    assert shape_of(str(folder)).layers == 2


def test_an_unknown_model_and_a_config_without_sizes_are_refused(tmp_path):
    for name in ("nobody/nothing", "/nowhere", "nothing", "a/b/c"):
        with pytest.raises(ValueError, match=rf"model\.path is '{name}'.*qwen2\.5-3b"):
            shape_of(name)
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(ValueError, match=r"config\.json has no 'num_hidden_layers'"):
        shape_of(str(tmp_path))


def test_what_is_sharded_by_hand(config):
    """1.5B on 4 GPUs: 4 bytes of weights and gradients, 8 of Adam's, a quarter of each."""
    parts = phase(found_of(config), "update: loss").parts
    shard = MODEL.parameters // 4
    assert parts["weights"] == pytest.approx(4 * shard, abs=4)
    assert parts["Adam"] == pytest.approx(8 * shard, abs=8)
    assert parts["gradients"] == pytest.approx(4 * shard, abs=4)
    assert parts["logits"] == 3 * 16_384 * 151_936 * 2  # bfloat16; with an entropy term
    assert found_of(config).kv_bytes_of_a_token == 2 * 28 * 2 * 128 * 2
    assert phase(found_of(config), "generation").total(1000 * GIB, 0.6) > 600 * GIB


def test_settings_come_from_their_keys(config):
    """Kind: a key is read under a wrong name, or not at all. Each must change its number in the right direction."""
    base, fsdp = read_settings(config), "actor_rollout_ref.actor.fsdp_config"
    for key, value, field, expected in (
        (f"{fsdp}.model_dtype", "bf16", "weight_bytes", 2),
        (f"{fsdp}.mixed_precision", {"param_dtype": "fp32"}, "compute_bytes", 4),
        (f"{fsdp}.mixed_precision", {"reduce_dtype": "bf16"}, "reduce_bytes", 2),
        (f"{fsdp}.fsdp_size", 2, "shard_over", 2),
        (f"{fsdp}.param_offload", True, "param_offload", True),
        (f"{fsdp}.optimizer_offload", True, "optimizer_offload", True),
        (f"{fsdp}.offload_policy", True, "cpu_policy", True),
        (f"{fsdp}.use_no_sync_for_gradient_accumulation", True, "defer_sync", True),
        (f"{fsdp}.entropy_from_logits_with_chunking", True, "entropy", "chunked"),
        (f"{fsdp}.use_torch_compile", False, "entropy", "plain"),
        ("actor_rollout_ref.actor.entropy_coeff", 0.0, "entropy_in_update", False),
        ("actor_rollout_ref.model.enable_gradient_checkpointing", False, "checkpointing", False),
        ("actor_rollout_ref.model.use_fused_kernels", True, "fused", True),
        ("actor_rollout_ref.model.use_remove_padding", False, "extra_logits", 1),
        ("actor_rollout_ref.rollout.temperature", 0.7, "extra_logits", 1),
        ("actor_rollout_ref.rollout.gpu_memory_utilization", 0.4, "share", 0.4),
        ("actor_rollout_ref.rollout.free_cache_engine", False, "sleeps", False),
        ("actor_rollout_ref.rollout.enable_sleep_mode", False, "sleeps", False),
        ("actor_rollout_ref.rollout.dtype", "float32", "vllm_bytes", 4),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 2, "tensor_parallel", 2),
        ("data.max_response_length", 2048, "longest", 4096),
        ("saw.method", "gradient_grpo", "objectives", 2),
    ):
        assert getattr(base, field) != expected, key
        assert getattr(read_settings(changed(config, (key, value))), field) == expected, key


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("actor.fsdp_config.ulysses_sequence_parallel_size", (2, 2, 1)),
        ("actor.ulysses_sequence_parallel_size", (2, 2, 2)),  # the reference follows it, in verl's configuration
        ("ref.ulysses_sequence_parallel_size", (1, 1, 2)),
        ("ref.fsdp_config.ulysses_sequence_parallel_size", (1, 1, 2)),
    ],
)
def test_actor_and_reference_have_a_sequence_parallelism_each_and_verl_reads_two_keys(config, key, expected):
    found = estimate(changed(config, (f"actor_rollout_ref.{key}", 2)), MODEL, 4, flash_attn=True)
    assert tuple(found.settings.sequence_parallel[name] for name in ("update", "log_probs", "reference")) == expected
    whole = estimate(config, MODEL, 4, flash_attn=True)
    for name, title in (("update", "update: loss"), ("log_probs", "log-probs"), ("reference", "reference")):
        parallel = found.settings.sequence_parallel[name]
        assert phase(found, title).parts["logits"] == phase(whole, title).parts["logits"] // parallel


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_reference_has_micro_batches_of_its_own(config, dynamic):
    """Kind: the actor's setting is used for the reference."""
    parts = "actor_rollout_ref."
    own = changed(
        config,
        (f"{parts}actor.use_dynamic_bsz", not dynamic),
        (f"{parts}rollout.log_prob_use_dynamic_bsz", not dynamic),
        (f"{parts}actor.ppo_micro_batch_size_per_gpu", 4),
        (f"{parts}rollout.log_prob_micro_batch_size_per_gpu", 8),
        (f"{parts}ref.log_prob_use_dynamic_bsz", dynamic),
        (f"{parts}ref.log_prob_micro_batch_size_per_gpu", 2),
        (f"{parts}ref.log_prob_max_token_len_per_gpu", 5000),
    )
    tokens = read_settings(own).tokens
    assert tokens["reference"] == (5000 if dynamic else 2 * 3072)
    assert (tokens["update"] == 4 * 3072) is dynamic


def test_the_fused_kernels_are_those_that_the_start_would_choose(config):
    """Kind: one choice made in two places; a user's setting must hold in both."""
    key = "actor_rollout_ref.model.use_fused_kernels"

    def fused(*pairs, flash_attn=False, **model):
        return estimate(changed(config, *pairs), replace(MODEL, **model), 4, flash_attn).settings.fused

    assert fused() is True
    assert fused(flash_attn=True) is False
    assert fused(tied=False) is False
    assert fused(model_type="gpt2") is False
    assert fused(("actor_rollout_ref.actor.calculate_sum_pi_squared", True)) is False
    for value in (True, False):
        assert fused((key, value), flash_attn=not value) is value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.actor.strategy", "megatron"),
        ("actor_rollout_ref.model.lora_rank", 8),
        ("trainer.v1.trainer_mode", "saw_separate_async"),
        ("actor_rollout_ref.rollout.name", "sglang"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 0),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", -1),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", None),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", "two"),
        ("actor_rollout_ref.rollout.data_parallel_size", 0),
        ("actor_rollout_ref.actor.fsdp_config.model_dtype", "int8"),
        ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", None),
    ],
)
def test_what_the_estimate_does_not_cover_is_refused_by_name(config, key, value):
    """Kind: a number that belongs to another training."""
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        estimate(changed(config, (key, value)), MODEL, 4)


def test_the_phases_are_those_of_the_step(config):
    def names(*pairs):
        return [phase.name for phase in estimate(changed(config, *pairs), MODEL, 4).phases]

    assert names()[:3] == ["generation", "log-probs", "reference"]
    assert "reference" not in names(("actor_rollout_ref.actor.use_kl_loss", False))
    assert "reference" in names(("actor_rollout_ref.actor.use_kl_loss", False), ("algorithm.use_kl_in_reward", True))
    assert "objectives' gradients: loss" in names(("saw.method", "gradient_gdpo"))
    assert "log-probs" not in names(("saw.options.informativeness", "gradient_norm"))


def test_fewer_layers_of_gradients_take_less(config):
    full = found_of(config, objectives=2)
    some = found_of(config, objectives=2, gradient_layers=7)
    at = "objectives' gradients: loss"
    ratio = phase(some, at).parts["gradients"] / phase(full, at).parts["gradients"]
    assert ratio == pytest.approx(7 * MODEL.layer_parameters / MODEL.parameters)
    assert phase(full, at).parts["gradients"] == 2 * phase(full, "update: loss").parts["gradients"]


def test_offloading_frees_the_right_phases(config):
    generation, update = "generation", "update: loss"
    for change, part in (({"param_offload": True}, "weights"), ({"optimizer_offload": True}, "Adam")):
        found = found_of(config, **change)
        assert phase(found, generation).parts[part] == 0
        assert phase(found, update).parts[part] > 0
    assert not any(
        phase.parts.get(part) for phase in found_of(config, cpu_policy=True).phases for part in ("weights", "Adam")
    )


def test_a_vllm_that_does_not_sleep_keeps_its_share(config):
    assert [phase.vllm for phase in found_of(config).phases].count(True) == 1
    assert all(phase.vllm for phase in found_of(config, sleeps=False).phases)


def test_the_share_of_several_nodes(config):
    """Kind: GPUs of a node taken for all, or a shard group taken for none."""
    eight, pairs = found_of(config, gpus=8), found_of(config, gpus=8, shard_over=2)
    assert 4 * phase(eight, "generation").parts["Adam"] == pytest.approx(
        phase(pairs, "generation").parts["Adam"], abs=8
    )


def test_what_fits_and_what_to_lower(config):
    """With the remedy applied it fits; with one step more it does not."""
    assert fits(found_of(config), usable(80)) == []
    gpu = usable(24)
    tight = found_of(config)
    faults = fits(tight, gpu)
    assert any("ppo_max_token_len_per_gpu to" in fault for fault in faults)
    tokens = largest_tokens(tight, gpu)
    assert 0 < tokens < 16_384
    for limit, good in ((tokens, True), (tokens + 1024, False)):
        limits = dict.fromkeys(tight.settings.tokens, limit)
        left = [fault for fault in fits(found_of(config, tokens=limits), gpu) if "token_len" in fault]
        assert (left == []) == good


def test_a_share_that_is_too_large_or_too_small_is_said(config):
    assert any("gpu_memory_utilization to 0." in fault for fault in fits(found_of(config, share=0.95), usable(80)))
    assert any("raise" in fault for fault in fits(found_of(config, share=0.05), usable(80)))


def test_a_limit_below_a_sequence_is_said(config):
    """verl stops in the first step then."""
    limits = {"update": 2048, "log_probs": 16_384, "reference": 16_384}
    (fault,) = fits(found_of(config, tokens=limits), usable(80))
    assert "ppo_max_token_len_per_gpu is 2048" in fault
    assert "3072" in fault


def test_the_reference_s_remedy_names_the_reference_s_own_key(config):
    """Kind: one part has dynamic batches, another fixed ones."""
    parts = "actor_rollout_ref."
    mixed = changed(
        config,
        (f"{parts}ref.log_prob_use_dynamic_bsz", False),
        (f"{parts}ref.log_prob_micro_batch_size_per_gpu", 64),
    )
    faults = fits(estimate(mixed, MODEL, 4, flash_attn=True), usable(40))
    assert any("lower actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu to " in fault for fault in faults)
    assert not any("ref.log_prob_max_token_len_per_gpu" in fault for fault in faults)


def test_rows_instead_of_tokens(config):
    parts = "actor_rollout_ref."
    fixed = changed(
        config,
        (f"{parts}actor.use_dynamic_bsz", False),
        (f"{parts}rollout.log_prob_use_dynamic_bsz", False),
        (f"{parts}ref.log_prob_use_dynamic_bsz", False),
        (f"{parts}actor.ppo_micro_batch_size_per_gpu", 4),
        (f"{parts}rollout.log_prob_micro_batch_size_per_gpu", 8),
        (f"{parts}ref.log_prob_micro_batch_size_per_gpu", 8),
    )
    found = estimate(fixed, MODEL, 4, flash_attn=True)
    assert found.settings.tokens == {"update": 4 * 3072, "log_probs": 8 * 3072, "reference": 8 * 3072}
    assert any("ppo_micro_batch_size_per_gpu to " in fault for fault in fits(found, usable(16)))


def test_without_flash_attn_only_the_logits_take_less(config):
    """The fused log-probabilities, then chosen, hold a chunk of them at a time; untied layers have none."""
    with_it, without, untied = (
        estimate(config, model, 4, flash_attn)
        for model, flash_attn in ((MODEL, True), (MODEL, False), (replace(MODEL, tied=False), False))
    )
    for one, other in zip(with_it.phases, without.phases, strict=True):
        assert all(other.parts[part] >= size for part, size in one.parts.items() if part != "logits")
    logits = [phase(each, "update: loss").parts["logits"] for each in (without, with_it, untied)]
    assert logits == sorted(logits)
    assert phase(without, "update: layers").parts["activations"] > phase(with_it, "update: layers").parts["activations"]


@pytest.mark.parametrize(
    ("sizes", "usable_by_torch", "expected"),
    [
        ([80, 40], True, 40),
        ([80, 10], True, 10),  # a part of one, MIG
        ([80, None], True, 80),
        ([None], True, None),  # another maker's
        ([80], False, None),  # seen by nvidia-smi alone
        ([], False, None),  # none, or hidden by CUDA_VISIBLE_DEVICES
    ],
)
def test_the_smallest_gpu_that_torch_can_use_counts(monkeypatch, sizes, usable_by_torch, expected):
    """Kind: the machine is also queried through nvidia-smi, which does not know hidden or divided GPUs."""
    devices = tuple(accelerator.Device("GPU", None if size is None else size * GIB) for size in sizes)
    found = accelerator.Found("580.1", devices, "13.0", usable_by_torch, None)
    monkeypatch.setattr(accelerator, "probe", lambda: found)
    assert memory.memory_of_a_gpu() == (None if expected is None else expected * GIB)


def test_an_nvidia_smi_that_torch_contradicts_is_not_believed(tmp_path, monkeypatch):
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 81920\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert memory.memory_of_a_gpu() is None


@pytest.mark.parametrize(
    ("table", "gib", "good"), [(table1, 80, True), (table1, 24, False), (table2, 12, False), (table2, None, True)]
)
def test_a_dry_run_says_whether_it_fits(table, gib, good, monkeypatch, capsys, tmp_path):
    """Kind: an estimate for another model, for no GPU, or one that is ignored."""
    monkeypatch.setattr(report, "memory_of_a_gpu", lambda: usable(gib) if gib else None)
    monkeypatch.setattr(common, "gpus_of_a_node", lambda: 4)
    monkeypatch.setattr(common, "diagnose", lambda arguments, plan: True)  # the doctor has its own tests
    for name in ("RAY_ADDRESS", "VERL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    arguments = table.parse(["--dry-run", "--method", "saw_gdpo", "--seeds", "1,2", "--out", str(tmp_path)])
    plan = table.plan(arguments) if table is table1 else table.plan(arguments, {})
    with pytest.raises(SystemExit) as ended:
        common.run_or_show(arguments, [], plan, [], print)
    said = capsys.readouterr()
    assert (ended.value.code == 0) == good
    assert said.out.count("memory (") == (2 if table is table1 else 1)  # one line per model, not per seed
    assert ("no GPU here; for 80 GB" in said.out) == (gib is None)
    assert ("missing: memory" in said.err) != good


def test_a_dry_run_that_cannot_be_estimated_says_so(monkeypatch):
    monkeypatch.setattr(report, "memory_of_a_gpu", lambda: usable(80))
    command = ["experiment=toolrl", "saw.method=grpo", "actor_rollout_ref.model.path=nobody/nothing"]
    (line,), missing = memory.check([command], 4)
    assert "no estimate" in line
    assert missing == []


def test_the_command_line_s_status_says_whether_it_fits(capsys):
    for gib, status in (("80", 0), ("16", 1)):
        with pytest.raises(SystemExit) as ended:
            main(["--model", "3b", "--gpu-memory", gib, "--flash-attn"])
        assert ended.value.code == status
    assert "does not fit: update: loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "fault"), [(["nokey=1"], "'nokey'"), (["--experiment", "nope"], "experiment/nope")]
)
def test_a_configuration_that_does_not_compose_is_named(options, fault, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert fault in capsys.readouterr().err
    (line,), missing = memory.check([["experiment=toolrl", "nokey=1"]], 4)
    assert "no estimate: Could not override 'nokey'" in line
    assert missing == []  # the doctor, which comes next, names it


def test_the_document_s_tables_are_the_code_s():
    """Kind: a formula changed but the text did not; python -m saw.memory --document prints the tables."""
    text = (ROOT / "docs" / "memory.md").read_text()
    for part in report.document():
        assert part in text


def test_a_shape_without_ties_or_biases():
    """Kind: a formula that only holds for Qwen2.5's small models."""
    tied = Shape(64, 2, 4, 2, 96, 128, tied=True)
    assert replace(tied, tied=False).parameters - tied.parameters == 64 * 128
    assert tied.parameters - replace(tied, attention_bias=False).parameters == 2 * (64 + 2 * 32)
