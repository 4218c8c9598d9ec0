"""CPU or GPU: who decides, what is refused, and that nothing else changes the environment."""

import json
import os
import subprocess
import sys

import pytest
import torch

from recipes.common import reproduce as common
from recipes.tldr import reproduce as table_2
from recipes.toolrl import reproduce as table_1
from saw.machine import accelerator, environment
from saw.machine.accelerator import AcceleratorError, Device, Found, decide
from saw.runs import train
from saw.runs.compose import compose
from tests.configs import EXPERIMENTS
from tests.conftest import ROOT

H100 = Device("NVIDIA H100", 80 * 2**30, (9, 0))
NOTHING = Found(None, (), "13.0", False, None)
WORKS = Found("580.65.06", (H100, H100), "13.0", True, None)
TOO_OLD = Found("550.54.15", (Device("NVIDIA A100"),) * 4, "13.0", False, "The NVIDIA driver on your system is too old")
NPU = Found(None, (Device("npu"),), None, True, None)


#: After an update of the kernel without the driver's module: no node, no file, and an nvidia-smi.
BROKEN = Found(None, (), "13.0", False, "nvidia-smi: couldn't communicate with the NVIDIA driver", broken=True)


def never() -> Found:
    raise AssertionError("the machine is looked at, and need not be")


@pytest.mark.parametrize(
    ("environ", "found", "name", "reason"),
    [
        ({}, NOTHING, "cpu", "no accelerator"),
        ({}, WORKS, "gpu", "2 x NVIDIA H100"),
        ({}, NPU, "gpu", "1 x npu"),
        # a container without GPUs sees the driver of its host
        ({}, Found("550.54.15", (), "13.0", False, None), "cpu", "no accelerator"),
        ({"SAW_PLATFORM": "", "VERL_PLATFORM": "", "RAY_ADDRESS": ""}, WORKS, "gpu", "H100"),
        ({"SAW_PLATFORM": "cpu"}, None, "cpu", "SAW_PLATFORM is cpu"),
        ({"SAW_PLATFORM": "CPU "}, None, "cpu", "SAW_PLATFORM is cpu"),
        ({"SAW_PLATFORM": "cpu", "VERL_PLATFORM": "cpu"}, None, "cpu", "SAW_PLATFORM is cpu"),
        ({"SAW_PLATFORM": "cpu", "VERL_PLATFORM": "cuda"}, None, "cpu", "overrules VERL_PLATFORM=cuda"),
        ({"SAW_PLATFORM": "cpu", "RAY_ADDRESS": "head:6379"}, None, "cpu", "SAW_PLATFORM is cpu"),
        ({"VERL_PLATFORM": "cpu"}, None, "cpu", "VERL_PLATFORM is cpu"),
        ({"VERL_PLATFORM": "cpu", "RAY_ADDRESS": "head:6379"}, None, "cpu", "VERL_PLATFORM is cpu"),
        ({"VERL_PLATFORM": "cuda"}, WORKS, "gpu", "VERL_PLATFORM is cuda; torch can use 2 x NVIDIA H100"),
        ({"SAW_PLATFORM": "gpu"}, WORKS, "gpu", "SAW_PLATFORM is gpu; torch can use"),
        ({"SAW_PLATFORM": "gpu"}, NOTHING, "gpu", "SAW_PLATFORM is gpu; this machine has no"),
        ({"RAY_ADDRESS": "head:6379"}, None, "gpu", "RAY_ADDRESS is head:6379"),
        ({"RAY_ADDRESS": "head:6379", "SAW_PLATFORM": "gpu"}, None, "gpu", "SAW_PLATFORM is gpu"),
        ({"RAY_ADDRESS": "local"}, NOTHING, "cpu", "no accelerator"),  # a Ray of the training's own
        ({"RAY_ADDRESS": "auto"}, None, "gpu", "RAY_ADDRESS is auto"),
        ({"CUDA_VISIBLE_DEVICES": ""}, BROKEN, "cpu", "hides the GPUs"),
        *(({"CUDA_VISIBLE_DEVICES": v}, None, "cpu", "CUDA_VISIBLE_DEVICES") for v in ("", "-1", "NoDevFiles", "-1,0")),
        (
            {"CUDA_VISIBLE_DEVICES": "", "SAW_PLATFORM": "gpu"},
            TOO_OLD,
            "gpu",
            "SAW_PLATFORM is gpu; this machine has no",
        ),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, WORKS, "gpu", "H100"),
    ],
)
def test_who_decides(environ, found, name, reason):
    platform = decide(environ, never if found is None else lambda: found)
    assert platform.name == name
    assert reason in platform.reason


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"SAW_PLATFORM": "gpu", "VERL_PLATFORM": "cpu"}, "SAW_PLATFORM is gpu and VERL_PLATFORM is cpu.*unset"),
        ({"SAW_PLATFORM": "gpu", "VERL_PLATFORM": " CPU"}, "SAW_PLATFORM is gpu and VERL_PLATFORM is cpu"),
        ({"SAW_PLATFORM": "gpu", "VERL_PLATFORM": "cpu", "RAY_ADDRESS": "head:6379"}, "VERL_PLATFORM is cpu"),
        ({"SAW_PLATFORM": "tpu"}, "SAW_PLATFORM is 'tpu'; expected cpu or gpu"),
    ],
)
def test_contradictions_are_refused_before_the_machine_is_looked_at(environ, says):
    with pytest.raises(AcceleratorError, match=says):
        decide(environ, never)


@pytest.mark.parametrize("environ", [{}, {"SAW_PLATFORM": "gpu"}, {"VERL_PLATFORM": "cuda"}])
@pytest.mark.parametrize(
    ("found", "says"),
    [
        (TOO_OLD, "4 x NVIDIA A100 found, driver 550.54.15.*CUDA 13.0 needs driver 580 or newer.*too old.*Update the"),
        (Found("470.1", (H100,), "12.8", False, None), "driver 470.1.*CUDA 12.8 needs driver 525 or newer.*Update the"),
        (Found("580.1", (H100,), None, False, None), "driver 580.1.*built without CUDA"),
        (Found(None, (H100,), "13.0", False, "nvidia-smi: mismatch"), "driver unknown.*580.*nvidia-smi: mismatch"),
        (Found("600.1", (H100,), "14.0", False, None), "CUDA 14.0 needs driver .see NVIDIA. or newer"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_an_error_and_no_fallback(environ, found, says):
    with pytest.raises(AcceleratorError, match=f"{says}.*SAW_PLATFORM=cpu rehearses"):
        decide(environ, lambda: found)


@pytest.mark.parametrize(("made_for", "helps"), [("cpu", "setup.sh --set gpu"), (None, "into this environment")])
def test_a_torch_without_cuda_is_replaced_by_what_replaces_it(monkeypatch, made_for, helps):
    """Kind: set-up installs nothing into an environment that it did not make."""
    monkeypatch.setattr(environment, "made_for", lambda: made_for)
    message = accelerator.unusable(Found("580.1", (H100,), None, False, None))
    assert helps in message
    assert ("setup.sh" in message) == (made_for is not None)
    assert "--rehearse" in message  # without it a table's trainings have SAW_PLATFORM=gpu


def test_gpus_that_do_not_exist_are_named():
    found = Found("580.1", (H100,), "13.0", False, None)
    with pytest.raises(AcceleratorError, match="CUDA_VISIBLE_DEVICES is '7': set it to existing GPUs"):
        decide({"CUDA_VISIBLE_DEVICES": "7"}, lambda: found)


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 2, ("0", "1")),
        ("3, 1", 2, ("3", "1")),
        ("GPU-8a2b,MIG-5c6d", 2, ("GPU-8a2b", "MIG-5c6d")),
        ("0,9,1", 1, ("0",)),  # CUDA stops at one that does not exist
        ("", 0, ()),
        ("-1", 0, ()),
        (None, 0, ()),
    ],
)
def test_usable_gpus_have_the_names_that_cuda_takes(visible, count, names):
    found = Found("580.1", (H100,) * count, "13.0", count > 0, None)
    assert accelerator.visible(found, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == names
    assert accelerator.visible(Found("580.1", (H100,), "13.0", False, None), {}) == ()


PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.3\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without anything of NVIDIA's; returns what gives it a driver, nodes, and an nvidia-smi."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "dev").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(accelerator, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(accelerator, "DEVICE_FOLDER", tmp_path / "dev")

    def make(driver: str | None = None, nodes: int = 0, smi: str | None = None) -> None:
        if driver is not None:
            (tmp_path / "version").write_text(driver)
        for name in [*(f"nvidia{number}" for number in range(nodes)), *(["nvidiactl", "nvidia-uvm"] if nodes else [])]:
            (tmp_path / "dev" / name).touch()
        if smi is not None:
            (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (tmp_path / "bin" / "nvidia-smi").chmod(0o755)

    return make


LISTS = (
    'case "$1" in -L) echo "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)"; echo "  MIG 1g Device 0: (UUID: MIG-2)";; '
    "*) echo 535.1.2;; esac"
)


def unusable_torch(monkeypatch, cuda: str | None, warning: str | None = None) -> None:
    def is_available() -> bool:
        if warning:
            import warnings

            warnings.warn(warning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.accelerator, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", cuda)


@pytest.mark.parametrize(
    ("has", "driver", "names"),
    [
        ({}, None, []),
        ({"driver": PROPRIETARY}, "550.54.15", []),
        ({"driver": PROPRIETARY, "nodes": 2}, "550.54.15", ["NVIDIA GPU"] * 2),
        ({"driver": OPEN, "smi": LISTS}, "580.65.06", ["NVIDIA A100-SXM4-80GB"]),
        ({"smi": LISTS}, "535.1.2", ["NVIDIA A100-SXM4-80GB"]),  # WSL
        ({"smi": f"echo 'WARNING: infoROM is corrupted'; {LISTS}"}, "535.1.2", ["NVIDIA A100-SXM4-80GB"]),
        (
            {"driver": "NVRM version: unknown\nGCC version:  gcc version 11.4.0 (Ubuntu)\n", "nodes": 1},
            None,
            ["NVIDIA GPU"],
        ),
        ({"smi": "echo '[N/A]'", "nodes": 1}, None, ["NVIDIA GPU"]),
    ],
)
def test_what_is_there_and_cannot_be_used_is_found(machine, monkeypatch, has, driver, names):
    machine(**has)
    unusable_torch(monkeypatch, "13.0", "driver too old")
    found = accelerator.probe()
    assert (found.driver, [device.name for device in found.devices]) == (driver, names)
    assert (found.usable, found.torch_cuda, found.error) == (False, "13.0", "driver too old")


def test_a_broken_nvidia_smi_is_quoted(machine, monkeypatch):
    machine(PROPRIETARY, nodes=1, smi="echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    unusable_torch(monkeypatch, "13.0")
    found = accelerator.probe()
    assert len(found.devices) == 1
    assert found.error is not None
    assert "version mismatch" in found.error


@pytest.mark.parametrize("smi", ["echo couldn\\'t communicate; exit 9", "echo No devices were found", "exec sleep 9"])
@pytest.mark.parametrize("environ", [{}, {"SAW_PLATFORM": "gpu"}, {"VERL_PLATFORM": "nvidia"}])
def test_an_nvidia_smi_that_finds_nothing_is_no_cpu(machine, monkeypatch, smi, environ):
    """Kind: scripts/environment.sh refuses this; SAW_VENV=active does not ask it."""
    stock, limit = accelerator.subprocess.run, 0.1 if "sleep" in smi else 60
    monkeypatch.setattr(accelerator.subprocess, "run", lambda *a, **options: stock(*a, **{**options, "timeout": limit}))
    machine(smi=smi)
    unusable_torch(monkeypatch, "13.0")
    with pytest.raises(AcceleratorError, match=r"nvidia-smi.*SAW_PLATFORM=cpu"):
        decide(environ)


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_90"], True),  # a later one of the same major version
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),  # Volta under CUDA 13
        ((10, 0), ["sm_80", "sm_90a"], False),
        ((10, 0), ["sm_80", "compute_90"], True),
        ((12, 0), ["sm_90", "sm_100", "sm_120"], True),
    ],
)
def test_a_gpu_without_kernels_in_this_torch_is_not_usable(machine, monkeypatch, capability, built_for, fits):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    monkeypatch.setattr(accelerator, "_torch_devices", lambda: (H100, Device("other", 1, capability)))
    found = accelerator.probe()
    assert found.usable == fits
    if not fits:
        with pytest.raises(AcceleratorError, match="other has compute capability"):
            decide({}, lambda: found)


def test_this_torch_on_a_machine_with_a_gpu(machine):
    """The real probe, with a driver and an nvidia-smi that say what such a machine's do."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    assert decide({}).name == "cpu"
    machine(PROPRIETARY, smi=LISTS)
    with pytest.raises(AcceleratorError, match=r"1 x NVIDIA A100-SXM4-80GB found, driver 550\.54\.15"):
        decide({})


@pytest.mark.parametrize(("name", "verls"), [("cpu", "cpu"), ("gpu", None)])
def test_a_start_sets_what_was_decided_and_says_why(monkeypatch, capsys, name, verls):
    for variable in ("SAW_PLATFORM", "VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES", train.REASON):
        monkeypatch.setenv(variable, "")  # so that what the start sets is undone
        monkeypatch.delenv(variable)
    monkeypatch.setattr(accelerator, "decide", lambda: accelerator.Platform(name, "a reason"))
    train.prepare_environment()
    assert os.environ["SAW_PLATFORM"] == name
    assert os.environ.get("VERL_PLATFORM") == verls
    assert os.environ["VERL_USE_EXTERNAL_MODULES"] == "saw.verl"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{name}: a reason" in said


def test_a_refused_start_is_one_line():
    environment = {**os.environ, "SAW_PLATFORM": "gpu", "VERL_PLATFORM": "cpu"}
    command = [sys.executable, "-m", "saw.runs.train", "experiment=quickstart"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("saw: SAW_PLATFORM is gpu and VERL_PLATFORM is cpu")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_composing_changes_no_environment_and_imports_no_verl():
    """In an interpreter of its own, which has imported nothing yet."""
    code = f"""
import json, os, sys, yaml
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as in conftest.py
from saw.runs.compose import compose
before = dict(os.environ)
sizes = [compose("experiment=" + name).trainer.n_gpus_per_node for name in {EXPERIMENTS}]
compose("platform=cpu", "experiment=quickstart")
heavy = sorted({{"verl", "torch", "ray"}} & set(sys.modules))
print(json.dumps([dict(os.environ) == before, heavy, len(sizes)]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [True, [], len(EXPERIMENTS)]


def test_an_override_has_the_last_word_over_verls_own_configuration(monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    config = compose("experiment=tldr", "trainer.total_epochs=3", "trainer.device=cuda")
    assert (config.trainer.total_epochs, config.actor_rollout_ref.actor.strategy) == (3, "fsdp2")
    assert config.critic.grad_clip == 1.0  # verl's
    assert "VERL_PLATFORM" not in os.environ


@pytest.mark.parametrize("table", ["1", "2"])
def test_a_tables_trainings_are_started_for_gpus(table, tmp_path, monkeypatch, capsys):
    """A kind: what the plan's check does to this process reaches the trainings, which inherit its environment."""
    monkeypatch.setattr(common, "gpus_of_a_node", lambda: 4)
    monkeypatch.setattr(common, "free_bytes", lambda folder: 1e15)
    for variable in ("RAY_ADDRESS", "VERL_PLATFORM", "SAW_PLATFORM"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")
    out = ["--out", str(tmp_path / "out"), "--dry-run"]
    if table == "1":
        (tmp_path / "raw.json").write_text("[]")
        arguments = table_1.parse(["--source", str(tmp_path / "raw.json"), *out])
        table_1.check(arguments)
        _, chains = table_1.plan(arguments)
    else:
        arguments = table_2.parse(out)
        table_2.check(arguments)
        _, chains = table_2.plan(arguments, {})
        assert "per training about" in capsys.readouterr().out  # a configuration was composed
    trainings = [stage for stages in chains.values() for stage in stages if stage.name in ("train", "merge")]
    assert len(trainings) == 2 * len(chains)
    for stage in trainings:
        inherited = {**os.environ, **stage.environment}
        assert inherited["SAW_PLATFORM"] == "gpu"
        assert "VERL_PLATFORM" not in inherited
