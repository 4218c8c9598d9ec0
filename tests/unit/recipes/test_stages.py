"""Nothing is done twice, nothing is lost, nothing is taken for something else."""

import json
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import psutil
import pytest

from recipes.common.stages import TRAIN, Stage, run_all, show
from saw.machine import accelerator, environment
from saw.machine.accelerator import Device, Found
from saw.runs.process_tree import JobFailed, TrainingJob

pytestmark = pytest.mark.slow  # they wait for processes


def stage(folder, name, code) -> Stage:
    return Stage(name, folder, ("-c", code), hours=0.01)


def count(folder, name, then="") -> Stage:
    """A stage that adds a line to a file."""
    return stage(folder, name, f"open({str(folder / 'count')!r}, 'a').write({name!r} + '\\n'); {then}")


def counted(folder) -> list[str]:
    return (folder / "count").read_text().split()


def test_finished_stages_are_skipped(tmp_path, capsys):
    stages = [count(tmp_path, "one"), count(tmp_path, "two")]
    ended = []
    for _ in range(2):
        run_all(stages[:1], {"chain": stages[1:]}, lambda: ended.append(1))
    assert counted(tmp_path) == ["one", "two"]
    assert len(ended) == 2
    assert capsys.readouterr().out.count("already done, skipped") == 2
    assert json.loads((tmp_path / "two.done.json").read_text())["seconds"] >= 0


def test_a_failed_chain_ends_and_the_others_go_on(tmp_path):
    broken = [count(tmp_path, "bad", then="raise SystemExit(3)"), count(tmp_path, "never")]
    with pytest.raises(SystemExit, match="1 of 2 failed: a; rerun the same command to resume"):
        run_all([], {"a": broken, "b": [count(tmp_path, "good")]}, lambda: count(tmp_path, "table").run())
    assert counted(tmp_path) == ["bad", "good", "table"]


def test_chains_run_at_the_same_time(tmp_path):
    """Each waits for the other's file: run one after the other, they would never end."""
    wait = "import time; from pathlib import Path\nwhile not Path({!r}).exists(): time.sleep(0.05)"
    ends = {name: tmp_path / name / "count" for name in "ab"}
    chains = {}
    for name, other in ("ab", "ba"):
        (tmp_path / name).mkdir()
        chains[name] = [count(tmp_path / name, "meet", then=wait.format(str(ends[other])))]
    chains["c"] = [count(tmp_path, "bad", then="raise SystemExit(3)")]
    with pytest.raises(SystemExit, match="1 of 3 failed: c"):
        run_all([], chains, lambda: None, parallel=2)
    assert all(stages[0].is_done() for name, stages in chains.items() if name in "ab")


#: Instead of a training: write its GPUs down, and end when another one has.
SHOWN = """
import os, sys, time
from pathlib import Path
shown, other = map(Path, sys.argv[1:])
shown.with_suffix(".part").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
shown.with_suffix(".part").rename(shown)
while not other.exists(): time.sleep(0.05)
"""


@pytest.fixture
def gpus(monkeypatch):
    """A faked machine without a Ray cluster: call it with the number of its GPUs and CUDA_VISIBLE_DEVICES."""
    monkeypatch.delenv("SAW_PLATFORM", raising=False)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)

    def fake(count, visible=None, torch_cuda="13.0"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = Found("580.65.06", (Device("a GPU"),) * count, torch_cuda, count > 0, None)
        monkeypatch.setattr(accelerator, "probe", lambda: found)
        monkeypatch.setattr(accelerator, "decide", partial(accelerator.decide, probe=lambda: found))

    return fake


@pytest.fixture
def chain(monkeypatch, tmp_path):
    """A training, and what follows it; both show their GPUs, and the training ends when another one has begun."""

    def job(stage):
        command = [sys.executable, "-c", SHOWN, str(stage.folder / stage.name), stage.command[-1].split("=")[1]]
        return TrainingJob(command, stage.folder, 60, stage.environment, stage.name, resume=True)

    monkeypatch.setattr(Stage, "job", property(job))

    def make(name, *overrides, until=None):
        folder = tmp_path / name
        end = f"trainer.experiment_name={tmp_path / until / 'train' if until else tmp_path}"
        train = Stage("train", folder, (*TRAIN, "experiment=quickstart", *overrides, end))
        return [train, Stage("evaluate", folder, ("-m", "evaluation", f"--out={tmp_path}"))]

    return make


def shown_gpus(folder) -> str:
    """The GPUs of a chain: all of its stages have the same."""
    first, second = ((folder / name).read_text() for name in ("train", "evaluate"))
    assert first == second
    return first


@pytest.mark.parametrize(
    ("visible", "groups"),
    [
        (None, {"0,1", "2,3"}),
        ("2,3,5,7", {"2,3", "5,7"}),
        ("GPU-a1, GPU-b2,GPU-c3,GPU-d4", {"GPU-a1,GPU-b2", "GPU-c3,GPU-d4"}),
    ],
)
def test_trainings_at_the_same_time_have_gpus_of_their_own(tmp_path, gpus, chain, visible, groups, capsys):
    """Kind: Ray's private clusters all count from GPU 0. Here c starts after a has ended, while b still runs."""
    gpus(4, visible)
    two = "trainer.n_gpus_per_node=2"
    chains = {"a": chain("a", two, until="b"), "b": chain("b", until="c"), "c": chain("c", two)}
    run_all([], chains, lambda: None, parallel=2)
    shown = {name: shown_gpus(tmp_path / name) for name in chains}
    assert {shown["a"], shown["b"]} == groups
    assert shown["c"] == shown["a"]
    assert f"CUDA_VISIBLE_DEVICES={shown['c']} " in capsys.readouterr().out
    gpus(0)  # a record is the same wherever the training ran
    assert all(stage.is_done() for stages in chains.values() for stage in stages)
    assert not any("VISIBLE" in mark.read_text() for mark in tmp_path.glob("*/*.json"))


@pytest.mark.parametrize(
    ("has", "visible", "needs", "told"),
    [
        (1, None, ["trainer.n_gpus_per_node=1"], "need 3 x 1 GPUs, .* use 1 of .*; use --parallel 1"),
        (5, None, ["trainer.n_gpus_per_node=2"], "need 3 x 2 GPUs, .* use 5 of .*; use --parallel 2"),
        (2, "4,6", [], r"need 3 x 1 .* use 2 of .*CUDA_VISIBLE_DEVICES is '4,6'.*; use --parallel 2"),
        (1, None, ["trainer.n_gpus_per_node=2"], "need 3 x 2 GPUs, .*; that is too few for one, which needs 2"),
        # the judge's GPU too
        (5, None, ["judge=verl", "reward.reward_model.model_path=x"], "need 3 x 2 GPUs, .*; use --parallel 2"),
        (4, None, ["trainer.n_gpus_per_node=0"], "n_gpus_per_node is 0; expected a whole number of at least 1"),
    ],
)
def test_too_few_gpus_are_refused_before_anything_runs(tmp_path, gpus, chain, has, visible, needs, told):
    gpus(has, visible)
    chains = {"a": chain("a"), "b": chain("b"), "c": chain("c", *needs)}
    with pytest.raises(SystemExit, match=told):
        run_all([count(tmp_path, "shared")], chains, lambda: None, parallel=3)
    assert not list(tmp_path.iterdir())


def test_other_accelerators_cannot_be_divided(gpus, chain):
    """CUDA_VISIBLE_DEVICES would change nothing, and all trainings would use the first one."""
    gpus(8, torch_cuda=None)
    with pytest.raises(SystemExit, match="--parallel is 2; expected 1 on 8 x a GPU"):
        run_all([], {name: chain(name) for name in "ab"}, lambda: None, parallel=2)


@pytest.mark.parametrize(
    ("variables", "parallel", "names"),
    [
        ({}, 1, "ab"),
        ({}, 4, "a"),  # nothing else runs at the same time
        ({"SAW_PLATFORM": "cpu"}, 2, "ab"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, 2, "ab"),
    ],
)
def test_otherwise_the_environment_stays_as_it_is(tmp_path, gpus, chain, monkeypatch, variables, parallel, names):
    gpus(1)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    run_all([], {name: chain(name) for name in names}, lambda: None, parallel=parallel)
    assert {shown_gpus(tmp_path / name) for name in names} == {"unset"}


def test_finished_chains_need_no_gpus(tmp_path, gpus, chain):
    """A rerun whose last two trainings are missing; a chain that only lacks its evaluation counts."""
    gpus(2)
    chains = {"a": chain("a", "trainer.n_gpus_per_node=2"), "b": chain("b"), "c": chain("c")}
    run_all([], {"a": chains["a"]}, lambda: None)
    run_all([], {"b": chains["b"][:1]}, lambda: None)
    run_all([], chains, lambda: None, parallel=3)
    assert {(tmp_path / name / "evaluate").read_text() for name in "bc"} == {"0", "1"}


TRAINING = """
import json
from pathlib import Path
folder = Path({folder!r})
{begin}
with open(folder / "metrics.jsonl", "a") as file:
    for step in {steps}:
        print(json.dumps(dict(step=step, data={{"critic/score/mean": 1.0}})), file=file)
"""
BEGIN = "(folder / 'run.json').write_text(json.dumps(dict(total_steps=3)))"


@pytest.mark.parametrize(
    ("begin", "steps", "told"),
    [
        (BEGIN, [1, 2], "ended after step 2 of 3"),
        (BEGIN, [], "ended after step 0 of 3"),
        ("", [], "ended before its first step"),  # while Ray was starting
    ],
)
def test_a_training_without_all_its_steps_is_not_done(tmp_path, begin, steps, told):
    """Kind: trainings that were stopped while Ray started ended with exit code 0, and were marked as done."""
    code = TRAINING.format(folder=str(tmp_path), begin=begin, steps=steps)
    early = Stage("train", tmp_path, ("-c", code), hours=0.01, trains=True)
    with pytest.raises(JobFailed, match=told):
        early.run()
    assert not early.is_done()


def test_steps_of_an_earlier_training_do_not_count(tmp_path):
    """Kind: ``quickstart --fresh`` that is told to stop while Ray starts; the folder has all steps of the last time."""
    (tmp_path / "run.json").write_text('{"total_steps": 1}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "data": {}}\n')
    stopped = Stage("train", tmp_path, ("-c", "pass"), hours=0.01, trains=True)
    with pytest.raises(JobFailed, match="ended before its first step"):
        stopped.run()
    assert not stopped.is_done()
    assert (tmp_path / "metrics.jsonl").read_text()  # still there


def test_a_resumed_training_without_a_step_left_is_done(tmp_path):
    """It was killed between its last step and its mark."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "data": {}}\n')
    code = TRAINING.format(folder=str(tmp_path), begin=BEGIN, steps=[])
    stage = Stage("train", tmp_path, ("-c", code), hours=0.01, trains=True)
    stage.run()
    assert stage.is_done()


@pytest.mark.parametrize("info", ["{'total", "", "[]", "{}", '{"total_steps": null}', '{"total_steps": "3"}'])
def test_a_broken_run_json_fails_its_chain_only(tmp_path, info):
    """Kind: any other error than JobFailed ends the other chains too."""
    (tmp_path / "a").mkdir()
    begin = f"(folder / 'run.json').write_text({info!r})"
    code = TRAINING.format(folder=str(tmp_path / "a"), begin=begin, steps=[1, 2, 3])
    broken = Stage("train", tmp_path / "a", ("-c", code), hours=0.01, trains=True)
    good = count(tmp_path, "good")
    with pytest.raises(SystemExit, match="1 of 2 failed: a;"):
        run_all([], {"a": [broken], "b": [good]}, lambda: None)
    assert not broken.is_done()
    assert good.is_done()


def test_a_broken_line_of_a_training_fails_its_chain_only(tmp_path):
    """Kind: the same; the training goes on to its end, and the other chains run."""
    for name in "ab":
        (tmp_path / name).mkdir()
    spoilt = BEGIN + "\n(folder / 'metrics.jsonl').write_text('{\"step\": 1, \"da\\n')"
    code = TRAINING.format(folder=str(tmp_path / "a"), begin=spoilt, steps=[1, 2, 3])
    broken = Stage("train", tmp_path / "a", ("-c", code), hours=0.01, trains=True)
    good = count(tmp_path / "b", "good")
    with pytest.raises(SystemExit, match="1 of 2 failed: a;"):
        run_all([], {"a": [broken], "b": [good]}, lambda: None)
    assert not broken.is_done()
    assert good.is_done()


def test_steps_that_cannot_be_read_are_a_failed_training(tmp_path):
    """Those of an earlier run, which the job itself does not read."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "da\n{"step": 2, "data": {}}\n')
    code = TRAINING.format(folder=str(tmp_path), begin=BEGIN, steps=[3])
    with pytest.raises(JobFailed, match=r"metrics\.1\.jsonl, line 1"):
        Stage("train", tmp_path, ("-c", code), hours=0.01, trains=True).run()


def test_a_training_with_all_its_steps_is_done(tmp_path):
    """Also if an earlier run has logged some of them."""
    rest = "(3,) if (folder / 'again').exists() else (1, 2)"
    code = TRAINING.format(folder=str(tmp_path), begin=BEGIN, steps=rest) + "(folder / 'again').touch()\n"
    stage = Stage("train", tmp_path, ("-c", code), hours=0.01, trains=True)
    with pytest.raises(JobFailed, match="step 2 of 3"):
        stage.run()
    stage.run()
    assert stage.is_done()


def interrupt_once_there(*files):
    """Press Ctrl-C once the files exist."""

    def press():
        while not all(file.exists() for file in files):
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_an_interrupted_stage_is_not_done_whatever_its_exit_code(tmp_path):
    (tmp_path / "a").mkdir()
    polite = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
    started = f"open({str(tmp_path / 'a' / 'count')!r}, 'a').close(); time.sleep(600)"
    stopped = stage(tmp_path / "a", "polite", polite + started)

    interrupt_once_there(tmp_path / "a" / "count")
    with pytest.raises(KeyboardInterrupt):
        run_all([], {"a": [stopped]}, lambda: None, parallel=2)
    assert not stopped.is_done()


def test_an_interrupt_stops_all_that_run(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    chains = {name: [count(tmp_path / name, "long", then="import time; time.sleep(600)")] for name in "abc"}

    interrupt_once_there(*(tmp_path / name / "count" for name in "ab"))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([], chains, lambda: None, parallel=2)
    assert time.monotonic() - started < 60
    assert not (tmp_path / "c" / "count").exists()
    assert not list(tmp_path.glob("*/running.json"))


def test_a_failed_shared_stage_stops_all(tmp_path):
    with pytest.raises(SystemExit, match="exit code 3"):
        run_all([stage(tmp_path, "bad", "raise SystemExit(3)")], {"a": [count(tmp_path, "never")]}, lambda: None)
    assert not (tmp_path / "count").exists()


@pytest.mark.parametrize(("then", "ended"), [("", "finished"), ("raise SystemExit(1)", "started")])
def test_a_stage_of_another_command_is_refused_before_anything_runs(tmp_path, then, ended):
    first = count(tmp_path, "train", then)
    try:
        run_all([], {"a": [first]}, lambda: None)
    except SystemExit:
        assert ended == "started"
    other = stage(tmp_path, "train", "print('other')")
    with pytest.raises(SystemExit, match=f"{ended} with another command"):
        run_all([count(tmp_path, "shared")], {"a": [other]}, lambda: None)
    assert counted(tmp_path) == ["train"]


@pytest.mark.parametrize(
    ("begin", "refused"),
    [("raise SystemExit('no such key')", False), (BEGIN, True), (BEGIN + "; raise SystemExit(1)", True)],
)
def test_a_training_that_made_nothing_may_be_followed_by_another(tmp_path, begin, refused):
    """Kind: a training that was refused for a wrong override kept its folder from the corrected command."""
    wrong = Stage("train", tmp_path, ("-c", TRAINING.format(folder=str(tmp_path), begin=begin, steps=[])), trains=True)
    with pytest.raises(JobFailed):
        wrong.run()
    code = TRAINING.format(folder=str(tmp_path), begin=BEGIN, steps=[1, 2, 3])
    corrected = Stage("train", tmp_path, ("-c", code), trains=True)
    if refused:
        with pytest.raises(SystemExit, match="started with another command"):
            corrected.is_done()
    else:
        assert not corrected.is_done()
        corrected.run()
        assert corrected.is_done()


BROKEN = [b"", b"[]", b"null", b"{", b"{}", b'{"command": "x"}', b'{"command": [1]}', b"\xff"]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("mark", ["started", "done"])
def test_a_broken_mark_is_named_before_anything_runs(tmp_path, mark, content):
    """Kind: a traceback for a file that a full disk, or a hand, left behind."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"train.{mark}.json"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"{path} is broken .*remove it"):
        run_all([count(tmp_path, "shared")], {"a": [count(tmp_path / "a", "train")]}, lambda: None)
    assert not (tmp_path / "count").exists()


def test_a_mark_without_its_cost_is_named(tmp_path):
    done = count(tmp_path, "one")
    (tmp_path / "one.done.json").write_text(json.dumps({"command": done.command, "seconds": 1.0}))
    assert done.is_done()
    with pytest.raises(SystemExit, match=r"one\.done\.json is broken \(no peak_bytes\)"):
        done.outcome()


def killed(folder, *others: str) -> Stage:
    """A stage, in whose folder another was killed with its owner: the mark, and what else it left."""
    gone = {"run_id": "none", "owner": 2**22 + 1, "started": 0.0}
    files = {"train.started.json": {"command": ["-c", "other"]}, "running.json": gone}
    for name in (*files, *others):
        (folder / name).write_text(json.dumps(files.get(name)))
    return count(folder, "train")


def test_another_command_may_follow_one_that_was_killed_before_it_made_anything(tmp_path):
    """Kind: SIGKILL, after which nothing removes the mark."""
    follows = killed(tmp_path, "train.log", "train.1.log", "cell.json")
    run_all([], {"a": [follows]}, lambda: None)
    assert follows.is_done()


@pytest.mark.parametrize("made", ["run.json", "metrics.jsonl", "global_step_1", "other.done.json"])
def test_but_not_one_that_made_something(tmp_path, made):
    with pytest.raises(SystemExit, match="started with another command"):
        killed(tmp_path, made).is_done()


def test_nor_one_that_is_running(tmp_path):
    follows = killed(tmp_path)
    alive = psutil.Process()
    owner = {"run_id": "none", "owner": alive.pid, "started": alive.create_time()}
    (tmp_path / "running.json").write_text(json.dumps(owner))
    with pytest.raises(SystemExit, match="started with another command"):
        follows.is_done()


def test_commands_are_shown_as_a_shell_takes_them(tmp_path, capsys):
    done = Stage("a", tmp_path, ("-c", "print('x y')"), environment={"K": "v w"})
    done.run()
    show([done], {})
    said, line = capsys.readouterr().out.splitlines()
    assert said == f"# {tmp_path.name}: a (done)"
    assert line == f"K='v w' {environment.python()} -c 'print('\"'\"'x y'\"'\"')'"


def test_a_command_that_is_shown_runs_where_the_environment_is_not_active(tmp_path):
    """Kind: the shell has another python, or none."""
    shown = Stage("a", tmp_path, ("-c", "import os, sys; print(sys.prefix, os.environ['K'])"), environment={"K": "v w"})
    shell = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", shown.line()], capture_output=True, text=True, env=shell, check=True)
    assert done.stdout == f"{sys.prefix} v w\n"
