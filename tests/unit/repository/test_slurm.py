"""``recipes/toolrl/slurm.sh`` with stand-ins for Slurm, Ray and the set-up: order, address, nodes that don't come."""

import os
import re
import shutil
import subprocess

import psutil
import pytest

from tests.conftest import ROOT

SCRIPT = "recipes/toolrl/slurm.sh"
#: Every stand-in writes what it was asked for, and on which node, into calls.log.
LOG = 'echo "${NODE:-batch}: ${0##*/} $*" >> "$STATE/calls.log"\n'
STAND_INS = {
    "bin/scontrol": 'printf "%s\\n" $NODES',
    "bin/srun": """
while [ "$1" != -w ]; do shift; done
export NODE=$2
exec "${@:3}"
""",
    "bin/hostname": """
case "$NODE $1" in
  *" --ip-address") echo 127.0.1.1 ;;
  "a --all-ip-addresses") echo "$ADDRESSES " ;;
esac
""",
    "bin/getent": 'for address in $KNOWN; do echo "$address STREAM $3"; done',
    "bin/sleep": "exec /bin/sleep 0.02",
    "venv/bin/ray": LOG
    + """
[ "$NODE" != "$FAILS" ] || exit 3
[ "$NODE" = "$NEVER" ] || touch "$STATE/joined/${NODE%%.*}"
[ -z "$RAY_AUTH_TOKEN" ] || touch "$STATE/token"
echo $$ > "$STATE/$NODE.pid"
exec /bin/sleep 60
""",
    "venv/bin/python": """
if [ "$2" = saw ]; then echo "batch: python $*" >> "$STATE/calls.log"; exit "$ARGUMENTS"; fi
ls "$STATE/joined" | xargs
[ -n "$(ls "$STATE/joined")" ] || { echo "ConnectionError: nobody there" >&2; exit 1; }
""",
    "repository/scripts/environment.sh": """
python=$STATE/venv/bin/python
set_up_unless_dry() { echo "batch: set_up_unless_dry $* on the $SAW_PLATFORM" >> "$STATE/calls.log"; }
""",
    "repository/scripts/reproduce_table1.sh": LOG
    + """
echo "$RAY_ADDRESS $SAW_PLATFORM" >> "$STATE/calls.log"
if [ "$HEAD_DIES" = 1 ]; then kill "$(cat "$STATE/a.pid")"; exec /bin/sleep 60; fi
exit "$STATUS"
""",
}


@pytest.fixture
def slurm(tmp_path):
    """Runs the script; variables set what the machine reports."""
    for name, text in STAND_INS.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    (tmp_path / "joined").mkdir()
    (tmp_path / "repository" / SCRIPT).parent.mkdir(parents=True)
    shutil.copy(ROOT / SCRIPT, tmp_path / "repository" / SCRIPT)

    def run(nodes: str = "a b", **said: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "STATE": str(tmp_path),
            "SLURM_SUBMIT_DIR": str(tmp_path / "repository"),
            "SLURM_JOB_NODELIST": "a[1-2]",
            **{"NODES": nodes, "ADDRESSES": "10.0.0.1", "KNOWN": "10.0.0.1", "STATUS": "0", "SAW_JOIN_LIMIT": "20"},
            "ARGUMENTS": "0",
            **dict.fromkeys(("FAILS", "NEVER", "HEAD_DIES"), ""),
            **said,
        }
        # the spool's copy runs, not the repository's
        command = ["bash", str(tmp_path / "repository" / SCRIPT), "--model", "3b"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20)
        log = tmp_path / "calls.log"
        return done, log.read_text().splitlines() if log.exists() else []

    yield run
    assert [file.stem for file in tmp_path.glob("*.pid") if psutil.pid_exists(int(file.read_text()))] == []


def test_the_nodes_join_one_after_the_other_and_the_training_runs_when_all_are_there(slurm, tmp_path):
    done, calls = slurm("a b c")
    assert done.returncode == 0, done.stderr
    assert calls[:3] == [
        "batch: set_up_unless_dry  --model 3b on the gpu",
        "batch: python -m saw reproduce table1 --check-arguments --model 3b",
        "batch: set_up_unless_dry --bfcl --model 3b on the gpu",
    ]
    assert calls[3] == "a: ray start --block --num-gpus 8 --head --node-ip-address 10.0.0.1 --port 6379"
    assert sorted(calls[4:6]) == [f"{node}: ray start --block --num-gpus 8 --address 10.0.0.1:6379" for node in "bc"]
    assert calls[6:] == ["a: reproduce_table1.sh --gpus 8 --nodes 3 --model 3b", "10.0.0.1:6379 gpu"]
    assert (tmp_path / "token").exists()


def test_wrong_arguments_end_the_job_before_anything_else_is_made(slurm):
    done, calls = slurm(ARGUMENTS="2")
    assert done.returncode == 2
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("addresses", "known", "address"),
    [
        ("10.0.0.1 192.168.7.1 fd00::1", "192.168.7.1", "192.168.7.1"),  # several: the one that the others know
        ("10.0.0.1 192.168.7.1", "172.16.0.9 10.0.0.1", "10.0.0.1"),  # what the name server says is old in part
        ("10.0.0.1", "10.0.0.1\n10.0.0.1", "10.0.0.1"),
    ],
)
def test_the_address_is_one_of_the_heads_that_another_node_knows(slurm, addresses, known, address):
    done, calls = slurm(ADDRESSES=addresses, KNOWN=known)
    assert done.returncode == 0, done.stderr
    assert f"--node-ip-address {address}" in calls[3]
    assert calls[-1] == f"{address}:6379 gpu"


def test_a_single_node_needs_nobody_who_knows_it(slurm):
    done, calls = slurm("a", ADDRESSES="fd00::1 10.0.0.1", KNOWN="127.0.1.1")
    assert done.returncode == 0, done.stderr
    assert "--node-ip-address 10.0.0.1 " in calls[3]


@pytest.mark.parametrize("known", ["127.0.1.1", "", "172.16.0.9"])
def test_an_address_that_is_not_known_is_asked_for(slurm, known):
    """There is no fallback to an address that may not work."""
    done, calls = slurm(KNOWN=known)
    assert done.returncode == 1
    assert "SAW_HEAD_ADDRESS" in done.stderr
    assert len(calls) == 3  # nothing was started
    done, calls = slurm(KNOWN=known, SAW_HEAD_ADDRESS="10.9.9.9")
    assert done.returncode == 0, done.stderr
    assert calls[-1] == "10.9.9.9:6379 gpu"


@pytest.mark.slow  # waits
@pytest.mark.parametrize(("never", "others"), [("b", "c"), ("a", "b")])
def test_a_node_that_never_joins_is_named(slurm, never, others):
    done, calls = slurm("a b c", NEVER=never, SAW_JOIN_LIMIT="2")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert re.search(rf"after 2 s \(SAW_JOIN_LIMIT\): {never}; in it:", message)
    assert not any("reproduce_table1.sh" in call for call in calls)
    assert any(call.startswith(f"{others}: ray") for call in calls) == (never != "a")  # the head comes first


@pytest.mark.parametrize("fails", ["a", "b"])
def test_a_node_whose_ray_ends_ends_the_job_at_once(slurm, fails):
    done, calls = slurm(FAILS=fails, SAW_JOIN_LIMIT="50")
    assert done.returncode == 1
    assert f"Ray on {fails} has ended" in done.stderr
    assert not any("reproduce_table1.sh" in call for call in calls)


def test_a_head_that_dies_later_ends_the_training(slurm):
    done, _ = slurm(HEAD_DIES="1")
    assert done.returncode == 1
    assert "has ended" in done.stderr


def test_the_job_has_the_status_of_the_training(slurm):
    done, _ = slurm(STATUS="7")
    assert done.returncode == 7


def test_slurms_names_may_be_longer_than_rays(slurm):
    """Ray's names are cut at the first dot, and so are Slurm's."""
    done, calls = slurm("a b.cluster.example")
    assert done.returncode == 0, done.stderr
    assert calls[-1] == "10.0.0.1:6379 gpu"


def test_it_is_run_with_sbatch():
    done = subprocess.run(["bash", ROOT / SCRIPT], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "sbatch" in done.stderr


def test_the_script_is_in_the_place_that_its_comment_names():
    text = (ROOT / SCRIPT).read_text()
    assert f"sbatch {SCRIPT}" in text
    assert (ROOT / "docs" / "clusters.md").exists()
