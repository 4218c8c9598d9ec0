"""Check whether an experiment can start on this machine, and what to do if not: a table with one line per check.

    bash scripts/doctor.sh                                         the machine and the software
    bash scripts/doctor.sh experiment=toolrl saw.method=gdpo       and what this experiment needs
    bash scripts/doctor.sh experiment=tldr judge=openai --no-calls

Overrides and --config-dir are those of saw train. Exit status 0: nothing is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saw.doctor import data, machine, services, software
from saw.doctor.estimates import fit
from saw.doctor.lines import can_start, examine, say, shortened, show
from saw.machine import hub, limits
from saw.machine.disk import unwritable
from saw.machine.line import Line, missing, ok

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from saw.doctor.cluster import Cluster

Check = tuple[str, Callable[[], Line]]
#: Every line, in the order of the table.
THINGS = (
    *("driver and CUDA", "GPUs", "GPU memory", "cores", "open files", "processes"),
    *("shared memory", "disk", "Ray's disk", "folders", "compiler, headers"),
    *("attention", "packages", "versions", "configuration"),
    *("model", "tokenizer", "judge's model", "training data", "validation data", "reward function"),
    *("wandb", "judge's key", "judge's answer", "Ray cluster", "Ray's token", "shared files"),
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="saw doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-calls", action="store_true", help="call neither the Hub, wandb nor the judge")
    parser.add_argument(
        "--later",
        action="append",
        default=[],
        choices=THINGS,
        metavar="THING",
        help="a line of the table that may be missing now, because it is made before the training; may be repeated",
    )
    parser.add_argument("--config-dir", "-cd", type=Path, help="a folder with configurations of your own")
    parser.add_argument("--config-name", "-cn", default="train", help="the primary configuration (train)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the primary configuration")
    arguments = parser.parse_intermixed_args(argv)
    for override in arguments.overrides:
        if "=" not in override and not override.startswith("~"):
            parser.error(f"{override!r} is not a Hydra override; expected KEY=VALUE")
    if arguments.config_dir is not None and not arguments.config_dir.is_dir():
        parser.error(f"--config-dir is {str(arguments.config_dir)!r}; expected a folder")
    return arguments


def diagnose(
    overrides: Sequence[str],
    calls: bool = True,
    later: Sequence[str] = (),
    config_name: str = "train",
    config_dir: Path | None = None,
) -> list[Line]:
    """Run every check.

    Args:
        overrides (Sequence[str]): of ``configs/train.yaml``; without an experiment, only machine and software.
        calls (bool): whether the Hub, wandb and the judge may be called.
        later (Sequence[str]): lines of the table that may be missing now.
        config_name (str): of the primary configuration.
        config_dir (Path | None): a further folder of configurations.
    """
    found = functools.cache(probe)
    platform: Callable[[], str] = functools.cache(lambda: platform_of(found))
    composing = functools.partial(compose, overrides, config_name=config_name, config_dir=config_dir)
    composed, composition = composing(platform)
    has_experiment = any(name.lstrip("+").startswith("experiment=") for name in overrides)
    if composed is not None and has_experiment and needs_gpus(composed, found, calls):
        platform = functools.partial(str, "gpu")
        composed, composition = composing(platform)
    composed = settled(composed, platform)
    experiment = composed if has_experiment else None
    cluster = services.cluster_of(experiment)
    checks: list[Check] = [
        ("driver and CUDA", lambda: machine.driver(experiment, found())),
        ("GPUs", lambda: machine.gpus(experiment, found(), cluster)),
        ("cores", lambda: machine.cores(experiment, cluster)),
        ("open files", limits.open_files),
        ("processes", limits.processes),
        ("shared memory", lambda: limits.shared_memory(experiment)),
        ("disk", lambda: limits.disk(experiment)),
        ("Ray's disk", lambda: limits.ray_disk(experiment)),
        ("folders", lambda: machine.folders(experiment, folder_faults)),
        ("compiler, headers", lambda: machine.compiler(experiment)),
        ("packages", lambda: software.packages(package_faults)),
        ("versions", lambda: software.pins(platform())),
    ]
    if composed is not None:
        here = functools.partial(data.has_config, composed.actor_rollout_ref.model.path)
        checks.append(("attention", lambda: software.attention(composed, attention_of, here())))
    if experiment is not None:
        checks += checks_of(experiment, calls, found, platform, cluster)
    else:
        checks.append(("configuration", lambda: composition))
    if experiment is not None or cluster is not None:
        checks += [
            ("Ray cluster", lambda: services.ray_cluster(experiment, cluster)),
            ("Ray's token", lambda: services.ray_token(cluster)),
            ("shared files", lambda: services.shared_files(cluster)),
        ]
    return examine(sorted(checks, key=lambda check: THINGS.index(check[0])), later)


def checks_of(
    config: DictConfig, calls: bool, found: Callable[[], Any], platform: Callable[[], str], cluster: Cluster | None
) -> list[Check]:
    """What an experiment needs besides machine and software.

    Args:
        config (DictConfig): the experiment.
        calls (bool): whether the Hub, wandb and the judge may be called.
        found (Callable): the accelerators.
        platform (Callable[[], str]): cpu or gpu.
        cluster (Cluster | None): the running Ray cluster, whose nodes may have other files.
    """
    listed = data.files_on_hub if calls else None
    judge_model = config.reward.reward_model
    path = config.actor_rollout_ref.model.path
    reading: list[Check] = [
        ("model", lambda: data.model(path, listed=listed, faults=lambda folder: model_fault(config))),
        ("tokenizer", lambda: data.tokenizer(config, calls)),
        ("training data", lambda: data.files(config, "train_files")),
        ("validation data", lambda: data.files(config, "val_files")),
    ]
    checks: list[Check] = [
        *((thing, functools.partial(services.on_the_nodes, check, cluster)) for thing, check in reading),
        ("GPU memory", lambda: machine.gpu_memory(config, found(), fit)),
        ("reward function", lambda: data.reward_function(config, reward_function_of)),
        ("configuration", lambda: software.configuration(config, lambda config: check_config(config, platform()))),
        ("wandb", lambda: services.wandb(config, calls)),
        ("judge's key", lambda: services.judge_key(config)),
        ("judge's answer", lambda: services.judge_call(config, calls)),
    ]
    if judge_model.enable:
        checks.append(("judge's model", lambda: data.model(judge_model.model_path, "judge's model", listed=listed)))
    return checks


def needs_gpus(config: DictConfig, found: Callable[[], Any], calls: bool) -> bool:
    """Whether ``saw train`` would refuse the experiment on the CPU; the doctor then checks what a GPU node needs."""
    from saw.machine.accelerator import NO_ACCELERATOR, decide

    try:
        from saw.runs import inputs

        if calls:
            data.look_for_the_hub(inputs.models(config))
        if not decide(os.environ, probe=found).reason.startswith(NO_ACCELERATOR):
            return False
        return inputs.is_large_for_a_cpu(config)
    except Exception:  # noqa: BLE001  the line of the driver, or of the configuration, shows it
        return False


def model_fault(config: DictConfig) -> str | None:
    """What is wrong with the model, as at the start of a training."""
    from saw.runs import inputs

    return "; ".join(inputs.model_faults(config)) or None


def folder_faults(config: DictConfig | None) -> Iterable[str]:
    """What is wrong with the folders that are written to, as at the start of a training."""
    if config is None:
        runs = Path(os.environ.get("SAW_RUNS", "runs"))
        own = [f"SAW_RUNS is {str(runs)!r}, but {fault}"] if (fault := unwritable(runs)) else []
        return [*own, *limits.library_folder_faults(None)]
    from saw.runs import inputs

    return inputs.folder_faults(config)


def probe() -> Any:
    """The accelerators, :class:`saw.machine.accelerator.Found`."""
    from saw.machine.accelerator import probe

    return probe()


def platform_of(found: Callable[[], Any]) -> str:
    """cpu or gpu; a GPU that cannot be used counts as gpu: its fault has its own line."""
    from saw.machine.accelerator import decide

    try:
        return decide(os.environ, probe=found).name
    except RuntimeError:
        return "gpu"


def compose(overrides: Sequence[str], platform: Callable[[], str], **options: Any) -> tuple[DictConfig | None, Line]:
    """The configuration, None if it cannot be composed, and its line."""
    thing, needed = "configuration", "a configuration with these overrides"
    try:
        from saw.runs.compose import compose

        if not any(override.startswith("platform=") for override in overrides):
            overrides = (f"platform={platform()}", *overrides)
        return compose(*overrides, **options), ok(thing, "composes", needed)
    except Exception as error:  # noqa: BLE001  the machine's lines are still useful
        found = f"{type(error).__name__}: {shortened(str(error))}"
        return None, missing(thing, found, needed, "fix the named override; the experiment was not checked")


def attention_of(config: DictConfig) -> Any:
    """The attention that saw.runs.train would choose."""
    from saw.verl.attention import choose

    return choose(config)


def package_faults() -> list[Any]:
    """What is missing or too old for the plug-in, each a :class:`saw.machine.requirements.Problem`."""
    from saw.machine.requirements import problems

    return problems()


def settled(config: DictConfig | None, platform: Callable[[], str]) -> DictConfig | None:
    """The configuration as the training would see it: with variables resolved and absolute paths."""
    settled = copy.deepcopy(config)
    try:
        from saw.runs import train

        if settled is not None:
            train.settle(settled, platform())
    except Exception:  # noqa: BLE001  the line of the configuration shows it
        return config
    return settled


def check_config(config: DictConfig, platform: str | None = None) -> None:
    """The checks of saw.runs.train before Ray starts that have no line of their own.

    Raises:
        ValueError: naming the key.
    """
    from saw.runs import inputs, train

    config = copy.deepcopy(config)
    with a_judges_key(config), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on standard output, verl reports that it found nothing
        train.check_settings(config, platform)
    if faults := [*inputs.written_faults(config), *inputs.file_faults(config)]:
        raise ValueError("; ".join(faults))


@contextlib.contextmanager
def a_judges_key(config: DictConfig) -> Iterator[None]:
    """Provide a dummy for a judge's key that is not set: it has its own line, and must not hide other faults."""
    from omegaconf import OmegaConf

    variable = OmegaConf.select(config, f"{services.JUDGE}.api_key_env")
    if variable is None or os.environ.get(variable, "").strip():
        yield
        return
    os.environ[variable] = "none"
    try:
        yield
    finally:
        del os.environ[variable]


def reward_function_of(config: DictConfig) -> Any:
    """The custom reward function; None if there is none."""
    from verl.utils.import_utils import load_extern_object

    section = config.reward.custom_reward_function
    return None if section.path is None else load_extern_object(module_path=section.path, object_name=section.name)


def prepare(arguments: argparse.Namespace) -> None:
    """Set this process up: quiet, and offline if no calls are wanted."""
    warnings.simplefilter("ignore")  # from verl's imports; the table shows what matters
    logging.disable(logging.WARNING)
    if arguments.no_calls:
        hub.use_cache_only()


def main(arguments: argparse.Namespace) -> None:
    """Show the table; the exit status tells whether the training can start."""
    say("checking the machine and the software; importing verl takes some seconds")
    lines = diagnose(
        arguments.overrides,
        not arguments.no_calls,
        arguments.later,
        config_name=arguments.config_name,
        config_dir=arguments.config_dir,
    )
    show(lines)
    raise SystemExit(0 if can_start(lines) else 1)


if __name__ == "__main__":
    given = parse()
    prepare(given)
    main(given)
