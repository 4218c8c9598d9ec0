"""verl's task runner on a running Ray cluster: where it is placed, and what happens if a node is lost."""

from types import SimpleNamespace

import pytest
import ray
from omegaconf import OmegaConf

from saw.runs import task_runner
from saw.runs.task_runner import GRACE, INTERVAL, NodeLost, OnThisNode, follow

JOB, OTHER_JOB = "01000000", "02000000"


class Cluster:
    """A stand-in for Ray, in which each wait takes its whole time.

    Attributes:
        nodes (dict[str, bool]): node -> whether it is alive.
        actors (list[tuple[str, str]]): job and node of each actor.
        ends_at (float): when the task runner ends, in seconds.
        error (Exception | None): how.
        events (dict[float, Callable]): what happens at a time.
    """

    def __init__(self):
        self.now = 0.0
        self.nodes = {"a": True, "b": True, "c": True}
        self.actors = [(JOB, "a"), (JOB, "b"), (OTHER_JOB, "c")]
        self.ends_at = 10 * INTERVAL
        self.error: Exception | None = None
        self.events: dict[float, object] = {}

    def lose(self, name: str, at: float) -> None:
        """A node, with the address that Ray kept of its actors."""

        def lost() -> None:
            self.nodes[name] = False
            self.actors = [(job, "" if node == name else node) for job, node in self.actors]

        self.events[at] = lost

    def wait(self, runs, timeout):
        assert self.now < 1000, "it would wait forever"
        until = self.now + timeout
        for at in sorted(at for at in self.events if at <= until):
            self.events.pop(at)()
        self.now = min(until, max(self.ends_at, self.now))
        return (runs, []) if self.now >= self.ends_at else ([], runs)

    def get(self, run):
        if self.error is not None:
            raise self.error

    def listed(self):
        return [
            {"NodeID": name, "Alive": alive, "NodeManagerHostname": f"host-{name}", "NodeManagerAddress": "10.0.0.1"}
            for name, alive in self.nodes.items()
        ]


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    stand_in = Cluster()
    monkeypatch.setattr("ray.wait", stand_in.wait)
    monkeypatch.setattr("ray.get", stand_in.get)
    monkeypatch.setattr("ray.nodes", stand_in.listed)
    context = SimpleNamespace(get_job_id=lambda: JOB, get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(
        task_runner,
        "actors",
        lambda: dict(
            enumerate({"JobID": job, "Address": {"NodeID": node}} for job, node in stand_in.actors),
        ),
    )
    monkeypatch.setattr(task_runner, "time", SimpleNamespace(monotonic=lambda: stand_in.now))
    return stand_in


@pytest.fixture
def config(tmp_path):
    return OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto"}})


def save(folder, step: int) -> None:
    (folder / f"global_step_{step}").mkdir()
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))


def test_a_training_without_a_loss_is_followed_to_its_end(cluster, config):
    assert follow("run", config) == "run"
    assert cluster.now == cluster.ends_at


def test_its_own_error_is_left_to_verl(cluster, config):
    cluster.error = ray.exceptions.RayTaskError("run", "Traceback", ValueError("no"))
    assert follow("run", config) == "run"


def test_a_training_that_fails_because_a_node_is_lost_says_so(cluster, config, tmp_path):
    save(tmp_path, 7)
    cluster.lose("b", at=2 * INTERVAL)
    cluster.ends_at, cluster.error = 4 * INTERVAL, ray.exceptions.ActorDiedError()
    with pytest.raises(NodeLost, match=rf"host-b \(10\.0\.0\.1\).* resumes from {tmp_path}/global_step_7") as ended:
        follow("run", config)
    assert isinstance(ended.value.__cause__, ray.exceptions.ActorDiedError)


def test_a_training_that_hangs_because_a_node_is_lost_is_ended(cluster, config):
    """Kind: TransferQueue's controller was there, and the task runner waits for its answer without a limit."""
    cluster.lose("b", at=2 * INTERVAL)
    cluster.ends_at = float("inf")
    with pytest.raises(NodeLost, match="There is no checkpoint: the same command starts again from step 1"):
        follow("run", config)
    assert 2 * INTERVAL + GRACE < cluster.now <= 2 * INTERVAL + GRACE + 2 * INTERVAL


def test_a_training_that_ends_well_in_spite_of_it_has_ended_well(cluster, config):
    cluster.lose("b", at=2 * INTERVAL)
    cluster.ends_at = 3 * INTERVAL
    assert follow("run", config) == "run"


def test_a_node_that_the_training_does_not_use_may_go(cluster, config):
    cluster.lose("c", at=2 * INTERVAL)
    cluster.ends_at = 2 * GRACE
    assert follow("run", config) == "run"


def test_how_to_resume_depends_on_the_resume_mode(cluster, config, tmp_path):
    save(tmp_path, 7)
    config.trainer.resume_mode = "disable"
    cluster.lose("b", at=2 * INTERVAL)
    cluster.ends_at = float("inf")
    with pytest.raises(NodeLost, match=r"trainer\.resume_mode is 'disable'.*trainer\.resume_mode=auto"):
        follow("run", config)


def test_the_task_runner_is_placed_on_the_drivers_node(cluster, config):
    """Kind: metrics and run.json on the disk of whichever node Ray chooses."""
    given = []

    class Actor:
        def options(self, **options):
            given.append(options)
            return SimpleNamespace(remote=lambda: SimpleNamespace(run=SimpleNamespace(remote=lambda config: "run")))

    runner = OnThisNode(Actor()).options(runtime_env={"nsight": "x"}).remote()
    assert runner.run.remote(config) == "run"
    (options,) = given
    strategy = options.pop("scheduling_strategy")
    assert (strategy.node_id, strategy.soft) == ("ab" * 28, False)
    assert options == {"num_cpus": 0, "runtime_env": {"nsight": "x"}}


def test_a_node_is_remembered_when_its_actors_addresses_are_gone(cluster):
    nodes = task_runner.UsedNodes(JOB)
    assert nodes.lost() == []
    cluster.lose("a", at=0.0)
    cluster.wait([], 0.0)
    assert nodes.lost() == ["host-a (10.0.0.1)"]
