"""A run leaves nothing behind, however it ends. The 'training' here is a shell script with a stubborn child."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from saw.runs.process_tree import RUN_ID, Job, JobFailed, TrainingJob, processes_of, stop_job_in

# A child in a session of its own that ignores SIGTERM, as some of Ray's and vLLM's do.
STUBBORN = "setsid bash -c 'trap \"\" TERM; while true; do sleep 0.2; done' & "
LOG_STEP = 'echo "{\\"step\\": 1, \\"data\\": {\\"a\\": 1.0}}" >> "$VERL_FILE_LOGGER_PATH"; '


def make_run(tmp_path, script, time_limit=20) -> TrainingJob:
    return TrainingJob(["bash", "-c", script], tmp_path, time_limit)


@pytest.fixture(autouse=True)
def marked(monkeypatch):
    """Jobs of this process have its id in their environment: other tests run jobs at the same time."""
    monkeypatch.setenv("SAW_TESTED_BY", str(os.getpid()))


def run_ids() -> set[str]:
    """Ids of the runs that this process started."""
    ids = set()
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("SAW_TESTED_BY") == str(os.getpid()):
            ids.add(environment.get(RUN_ID, ""))
    return ids - {""}


def wait_for_processes(owner: Path) -> str:
    """Wait until a job and its child run, and return the job's id."""
    deadline = time.monotonic() + 20
    while not owner.exists() or not owner.read_text() or len(processes_of(json.loads(owner.read_text())["run_id"])) < 2:
        assert time.monotonic() < deadline, "the job did not start"
        time.sleep(0.1)
    return json.loads(owner.read_text())["run_id"]


@pytest.mark.slow
def test_steps_are_followed_and_strays_stopped(tmp_path):
    seen, before = [], run_ids()
    make_run(tmp_path, STUBBORN + LOG_STEP + "sleep 1; exit 0").follow(lambda *step: seen.append(step), interval=0.2)
    assert seen == [(1, {"a": 1.0})]
    assert run_ids() <= before


def test_failure_shows_the_end_of_the_log(tmp_path):
    with pytest.raises(JobFailed, match=r"exit code 3.*\n.*out of luck"):
        make_run(tmp_path, "echo out of luck; exit 3").follow(print, interval=0.1)


@pytest.mark.slow
def test_time_limit(tmp_path):
    before = run_ids()
    with pytest.raises(JobFailed, match="time limit of 1 s"):
        make_run(tmp_path, STUBBORN + "sleep 60", time_limit=1).follow(print, interval=0.1)
    assert run_ids() <= before


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_follower_is_interrupted_or_killed(tmp_path, how):
    code = (
        "import sys; from pathlib import Path; from saw.runs.process_tree import TrainingJob;"
        f"TrainingJob(['bash', '-c', {STUBBORN + 'sleep 60'!r}], Path(sys.argv[1]), 60).follow(print, interval=0.1)"
    )
    follower = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    run_id = wait_for_processes(tmp_path / "running.json")
    os.kill(follower.pid, how)
    follower.wait(timeout=20)
    deadline = time.monotonic() + 20
    while processes_of(run_id):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.2)
    make_run(tmp_path, "exit 0").follow(print, interval=0.1)  # and a second call works


@pytest.mark.slow
def test_a_folder_in_use_is_refused(tmp_path):
    """Refused if another process follows a job in the folder; its metrics are kept."""
    code = (
        "import sys; from pathlib import Path; from saw.runs.process_tree import TrainingJob;"
        f"job = TrainingJob(['bash', '-c', {LOG_STEP + STUBBORN + 'sleep 60'!r}], Path(sys.argv[1]), 60);"
        "job.follow(print, interval=0.1)"
    )
    follower = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    run_id = wait_for_processes(tmp_path / "running.json")
    with pytest.raises(JobFailed, match=f"in use by process {follower.pid}"):
        make_run(tmp_path, "exit 0").follow(print)
    assert processes_of(run_id)
    assert (tmp_path / "metrics.jsonl").exists()
    follower.send_signal(signal.SIGINT)
    follower.wait(timeout=30)


def test_a_process_that_bears_the_job_s_id_is_its_own(tmp_path):
    with subprocess.Popen(["sleep", "60"], env={**os.environ, RUN_ID: "outer/x1"}) as process:
        tmp_path.joinpath("running.json").write_text(json.dumps({"run_id": "x1", "owner": process.pid}))
        while not psutil.Process(process.pid).environ():  # Linux shows none for a moment after the program has started
            time.sleep(0.01)
        with pytest.raises(JobFailed, match="in use by process"):
            make_run(tmp_path, "exit 0").follow(print)
        process.kill()


@pytest.mark.parametrize("started", [None, 1.0, "then"])
@pytest.mark.parametrize("whose", [lambda: os.getppid(), lambda: 1])
def test_a_process_that_was_given_the_owner_s_number_is_not_in_the_way(tmp_path, whose, started):
    """Kind: a reused process id. It is another process if neither its start time nor its job id match."""
    owner = {"run_id": "gone", "owner": whose()} | ({} if started is None else {"started": started})
    tmp_path.joinpath("running.json").write_text(json.dumps(owner))
    make_run(tmp_path, "exit 0").follow(print, interval=0.1)
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '{"run_id": "x", "own', "null", "[]", "7", "{}", '{"run_id": "x"}', '{"owner": 1}'),
        *('{"run_id": null, "owner": 1}', '{"run_id": "", "owner": 1}', '{"run_id": "x", "owner": "1"}'),
        *('{"run_id": "x", "owner": -1}', '{"run_id": "x", "owner": 1e3}', f'{{"run_id": "x", "owner": {10**30}}}'),
        "\ufffe\x00",
    ],
)
def test_a_broken_running_json_is_stale(tmp_path, text):
    """Kind: a file that a killed process left half written stops every later start."""
    tmp_path.joinpath("running.json").write_bytes(text.encode("utf-16" if "\ufffe" in text else "utf-8"))
    stop_job_in(tmp_path)
    make_run(tmp_path, "exit 0").follow(print, interval=0.1)
    assert not list(tmp_path.glob("running.json*"))


OLD = '{"step": 1, "data": {"old": 1}}\n'


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("script", ["exit 1", "exit 0", ': > "$VERL_FILE_LOGGER_PATH"; exit 1'])
def test_a_job_that_logs_nothing_leaves_the_metrics_as_they_were(tmp_path, script, resume):
    """Kind: a refused start, here by the job's own check, deletes the earlier training's metrics."""
    (tmp_path / "metrics.jsonl").write_text(OLD)
    (tmp_path / "metrics.3.jsonl").write_text(OLD)
    run = make_run(tmp_path, script)
    run.resume = resume
    seen = []
    try:
        run.follow(lambda *step: seen.append(step), interval=0.1)
    except JobFailed:
        assert script.endswith("1")
    assert seen == []
    assert sorted(path.name for path in tmp_path.glob("metrics*")) == ["metrics.3.jsonl", "metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == OLD


def test_a_command_that_is_not_there_leaves_the_metrics_as_they_were(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(OLD)
    with pytest.raises(FileNotFoundError):
        TrainingJob(["no-such-command"], tmp_path, 20).follow(print)
    assert (tmp_path / "metrics.jsonl").read_text() == OLD


@pytest.mark.parametrize(
    ("resume", "step", "left"),
    [(False, 0, 0), (False, 1, 0), (True, 1, 2), (False, 5, 2)],  # step 5 first: it went on from a checkpoint
)
def test_earlier_metrics_go_once_a_training_from_the_beginning_has_logged(tmp_path, resume, step, left):
    (tmp_path / "metrics.jsonl").write_text(OLD)
    (tmp_path / "metrics.1.jsonl").write_text(OLD)
    run = make_run(tmp_path, LOG_STEP.replace('\\"step\\": 1', f'\\"step\\": {step}') + "exit 0")
    run.resume = resume
    seen = []
    run.follow(lambda *step: seen.append(step), interval=0.1)
    assert seen == [(step, {"a": 1.0})]
    assert len(list(tmp_path.glob("metrics.*.jsonl"))) == left


GOOD = [b'{"step": 1, "data": {"a": 1.0}}', b'{"step": 2, "data": {"a": 2.0}}']
BROKEN_LINES = {
    "half a line": b'{"step": 1, "da',
    "bytes": b"\xff\xfe",
    "nothing but zeros": b"\0" * 20,
    "a list": b"[1]",
    "a number": b"7",
    "no step": b'{"data": {}}',
    "no data": b'{"step": 2}',
    "a step as text": b'{"step": "2", "data": {}}',
    "a deep one": b"[" * 100_000,
}


@pytest.mark.parametrize("line", BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_broken_line_of_a_running_training_is_named_once_and_the_rest_is_followed(tmp_path, line, caplog):
    """Kind: any other error than JobFailed ends all chains of a study."""
    (tmp_path / "lines").write_bytes(b"\n".join([GOOD[0], line, b"", line, GOOD[1], b""]))
    seen = []
    script = f'cat {tmp_path / "lines"} >> "$VERL_FILE_LOGGER_PATH"'
    make_run(tmp_path, script).follow(lambda *step: seen.append(step), interval=0.05)
    assert seen == [(1, {"a": 1.0}), (2, {"a": 2.0})]
    (warned,) = caplog.messages
    assert f"{tmp_path / 'metrics.jsonl'}, line 2: " in warned


def test_faults_are_found_in_the_log(tmp_path):
    run = make_run(
        tmp_path,
        "echo fine; echo '2026 - ERROR - half a batch'; echo 'Final validation metrics: None'; echo ERROR; exit 0",
    )
    run.follow(print, interval=0.1)
    assert run.faults() == ["2026 - ERROR - half a batch"]


@pytest.mark.slow
def test_a_job_of_a_job_is_stopped_with_it(tmp_path):
    before = run_ids()
    inner = (
        "import sys; from pathlib import Path; from saw.runs.process_tree import Job;"
        f"Job(['bash', '-c', {STUBBORN + 'sleep 60'!r}], Path(sys.argv[1]), 60).finish()"
    )
    outer = Job([sys.executable, "-c", inner, str(tmp_path / "inner")], tmp_path, time_limit=60)
    with outer.running():
        wait_for_processes(tmp_path / "inner" / "running.json")
    assert run_ids() <= before


def test_the_log_of_an_earlier_job_is_kept(tmp_path):
    for word in ("one", "two"):
        Job(["echo", word], tmp_path, 20, name="talk").finish(interval=0.1)
    assert (tmp_path / "talk.1.log").read_text() == "one\n"
    assert (tmp_path / "talk.log").read_text() == "two\n"


@pytest.mark.parametrize("titles", [["ray::A"], ["ray::" + "x" * 2000, "ray::A"]])
def test_a_process_that_renames_itself_still_bears_the_id(tmp_path, titles):
    """Kind: a process of the run that is not found. Ray's agents overwrote their environment and survived."""
    code = f"import time, setproctitle\nfor title in {titles!r}: setproctitle.setproctitle(title)\ntime.sleep(60)"
    with Job([sys.executable, "-c", code], tmp_path, 20).running() as process:
        run_id = json.loads((tmp_path / "running.json").read_text())["run_id"]
        deadline = time.monotonic() + 20
        while not psutil.Process(process.pid).cmdline()[0].startswith("ray::A"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [found.pid for found in processes_of(run_id)] == [process.pid]
