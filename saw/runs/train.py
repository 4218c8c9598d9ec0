"""Train with verl's pipeline and this repository's configuration tree.

    python -m saw train experiment=quickstart saw.method=saw_gdpo

The same as ``python -m verl.trainer.main_ppo`` with the plug-in loaded, for the configurations in ``configs/``.
Everything that can be checked is checked before files of an earlier training in the same folder are touched.
"""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from saw.faults import TrainingEnded, WrongVersion
from saw.machine import accelerator, cluster, hub, limits
from saw.records import metrics_file
from saw.runs import handover
from saw.runs.compose import CONFIGS

#: The variable that passes the reason for the platform to the composed configuration.
REASON = "SAW_PLATFORM_REASON"
#: verl's whole default configuration, in the package ``verl.trainer.config``.
VERL_DEFAULTS = "_generated_ppo_trainer.yaml"
#: Keys by which a command line selects an experiment.
EXPERIMENT = ("experiment", "+experiment", "++experiment")
#: Options with which Hydra shows something instead of starting a training.
ASKS_HYDRA = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def prepare_environment() -> None:
    """Load the plug-in in every process that imports verl, and choose the platform.

    ``SAW_PLATFORM``, cpu or gpu, selects the configuration group ``platform``; if it is not set,
    :mod:`saw.machine.accelerator` decides.

    Raises:
        AcceleratorError: for a platform that can't be used.
    """
    modules = [module for module in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",") if module]
    if "saw.verl" not in modules:
        os.environ["VERL_USE_EXTERNAL_MODULES"] = ",".join([*modules, "saw.verl"])
    platform = accelerator.decide()
    os.environ["SAW_PLATFORM"] = platform.name
    os.environ[REASON] = platform.reason
    if platform.name == "cpu":
        os.environ["VERL_PLATFORM"] = "cpu"
    _say(f"platform {platform.name}: {platform.reason}")


def settle(config: DictConfig, platform: str | None) -> None:
    """Make a configuration mean the same in any process, and refuse what neither verl nor the method checks.

    The doctor calls it too. A refused start must not touch the metrics of an earlier training.

    Args:
        config (DictConfig): verl's whole configuration.
        platform (str | None): cpu or gpu, by :mod:`saw.machine.accelerator`; None if it is undecided.

    Raises:
        ValueError: naming the key.
    """
    from saw.verl.config import ConfigError

    with _as_config_errors():
        handover.settle(config)
        cluster.needed(config)  # raises for an invalid count; verl would divide by it
    device = config.trainer.device
    if platform and (device == "cpu") != (platform == "cpu"):  # by platform=... on the command line
        raise ConfigError(
            f"trainer.device is {device!r}, but verl was told to use the {platform} ({os.environ.get(REASON)}); "
            "set the platform for both with SAW_PLATFORM=cpu or SAW_PLATFORM=gpu"
        )


def _choose(config: DictConfig) -> None:
    """Choose what the configuration leaves open, and record the choices in it; ``run.json`` then has them too."""
    from saw.verl import attention

    chosen = {"platform": os.environ.get(REASON, "by the caller of saw.runs.train.main")}
    choice = attention.choose(config)
    if choice is not None:
        attention.apply(config, choice)
        chosen["attention"] = f"{choice.name}: {choice.reason}"
        _say(f"attention {chosen['attention']}")
    OmegaConf.update(config, "chosen", chosen, force_add=True)


def _say(line: str) -> None:
    sys.stderr.write(f"saw: {line}\n")
    sys.stderr.flush()


def _keep_earlier_metrics(config: DictConfig) -> None:
    """Make verl's file logger write beside the checkpoints, and put the metrics of an earlier training aside.

    If this training does not resume it, SAW's trainers delete them once the models are loaded.
    """
    from saw.verl.names import MODES

    if "file" in config.trainer.logger:
        path = Path(config.trainer.default_local_dir) / "metrics.jsonl"
        # set to nothing, verl would open a file without a name
        path = Path(os.environ.get(metrics_file.LOCATION) or path.resolve())
        os.environ[metrics_file.LOCATION] = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_saw = config.trainer.v1.trainer_mode in MODES
        metrics_file.begin(path, resume=is_saw or config.trainer.resume_mode != "disable")


def _fork_workers(config: DictConfig) -> None:
    """On a CPU, if this process starts Ray, let one process do the imports for all workers."""
    key = "ray_kwargs.ray_init.runtime_env.py_executable"
    if os.environ.get("VERL_PLATFORM") != "cpu" or cluster.running(config) or OmegaConf.select(config, key):
        return
    from saw.verl.patches.forked_workers import py_executable

    OmegaConf.update(config, key, py_executable(), force_add=True)


def _task_runner(config: DictConfig) -> Any:
    """verl's task runner; on a running cluster, one that runs on this node and notices lost nodes."""
    from verl.trainer import main_ppo

    if cluster.running(config) is None:
        return main_ppo.TaskRunnerV1
    from saw.runs.task_runner import OnThisNode

    return OnThisNode(main_ppo.TaskRunnerV1)


def check_settings(config: DictConfig, platform: str | None) -> None:
    """Check the settings alone, without what they name; the doctor calls it too.

    Args:
        config (DictConfig): verl's whole configuration.
        platform (str | None): cpu or gpu; None if it is undecided.

    Raises:
        ValueError: naming the key, for what can't work.
    """
    from verl.trainer import main_ppo

    from saw.verl.config import ConfigError

    settle(config, platform)
    _refuse_text_for_numbers(config)
    if not config.trainer.use_v1:
        raise ConfigError("trainer.use_v1 is False; expected True: verl's older trainers are not started from here")
    main_ppo.auto_set_device(config)
    main_ppo.validate_config(  # includes SAW's checks (saw/verl/patches/validate_config.py)
        config=config,
        use_reference_policy=main_ppo.need_reference_policy(config),
        use_critic=main_ppo.need_critic(config),
    )


def _refuse_text_for_numbers(config: DictConfig) -> None:
    """Refuse a text where verl's default is a number; verl would fail on it minutes later."""
    from saw.verl.config import ConfigError

    defaults = yaml.load((files("verl.trainer.config") / VERL_DEFAULTS).read_text(), yaml.CSafeLoader)
    faults = [
        f"{key} is the text {value!r}; expected a number, or ${{oc.decode:${{oc.env:NAME}}}} to read it from a variable"
        for key in _numbers(defaults)
        if isinstance(value := OmegaConf.select(config, key), str)
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _numbers(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys whose values are numbers."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif type(value) in (int, float):
            yield prefix + key


def check(config: DictConfig, platform: str | None) -> None:
    """Make a configuration ready for verl, with all open choices made; leaves every file as it is.

    Args:
        config (DictConfig): verl's whole configuration.
        platform (str | None): cpu or gpu; None if it is undecided.

    Raises:
        ValueError: naming the key, for what can't work or doesn't exist.
    """
    from saw.runs import cluster_checks, inputs

    check_settings(config, platform)
    _look_for_the_hub(config)
    _refuse_large_model(config)
    _choose(config)
    inputs.check(config)
    with _as_config_errors():
        cluster.check(config, cluster.available(config))
        if cluster.running(config) is None:  # otherwise the nodes' own limits count
            limits.check(config)
    cluster_checks.check(config)


def _look_for_the_hub(config: DictConfig) -> None:
    """If a model is on the Hub and the Hub does not answer, use its cache only, instead of waiting for each file."""
    from saw.runs import inputs

    fault = hub.unreachable(inputs.models(config), children=cluster.running(config) is None)
    if fault:
        _say(f"the Hub does not answer ({fault}): only what is in its cache is used")


@contextmanager
def _as_config_errors() -> Iterator[None]:
    """Raise a plain ValueError as a ConfigError, which :func:`command` shows without a traceback."""
    from saw.verl.config import ConfigError

    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ConfigError(str(error)) from error


def _refuse_large_model(config: DictConfig) -> None:
    """Refuse a large model if the CPU was chosen only for lack of an accelerator: a step would take hours."""
    from saw.runs import inputs
    from saw.verl.config import ConfigError

    if os.environ.get(REASON, "").startswith(accelerator.NO_ACCELERATOR) and inputs.is_large_for_a_cpu(config):
        raise ConfigError(
            f"{inputs.MODEL}.path is {config.actor_rollout_ref.model.path!r}, too large for a CPU, and "
            f"{os.environ[REASON]}; use a GPU node, or rehearse with a toy model and size=toy; SAW_PLATFORM=cpu trains "
            "it on the CPU all the same"
        )


def main(config: DictConfig) -> None:
    """Check a composed configuration, then do what verl's own entry point does after its check.

    Raises:
        ValueError: naming the key, for what can't work or doesn't exist, and in Hydra's multirun.
    """
    from saw.verl.config import ConfigError

    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            "hydra.mode is MULTIRUN (--multirun), but all trainings of one process would write the same metrics: "
            "saw sweep starts each in its own"
        )
    with _as_config_errors():
        cluster.reach(cluster.ray_init(config).get("address"))
    from verl.trainer import main_ppo  # after it: this import and verl's checks print lines of their own

    check(config, os.environ.get("SAW_PLATFORM"))
    _fork_workers(config)
    _keep_earlier_metrics(config)  # the last thing that can fail before Ray
    with handover.handing_over(config):
        main_ppo.run_ppo(config, task_runner_class=_task_runner(config))


@hydra.main(config_path="pkg://saw.configs", config_name="train", version_base=None)
def command(config: DictConfig) -> None:
    """:func:`main` for a command line: shows a refused configuration, or why a training ended, as one message."""
    from saw.verl.config import ConfigError

    try:
        main(config)
    except (ConfigError, TrainingEnded) as error:
        # An error from another process comes wrapped by Ray: its text is a traceback, its cause has the message.
        raise SystemExit(f"saw: {getattr(error, 'cause', error)}") from None


def missing_experiment(arguments: Sequence[str]) -> str | None:
    """The message for a command line without an experiment; None if it has one, or only asks Hydra for information.

    Without one there is neither data nor a model, and no group ``reading`` for an override to select from.
    """
    if any(argument.split("=")[0] in ASKS_HYDRA for argument in arguments):
        return None
    named = [value for key, _, value in (argument.partition("=") for argument in arguments) if key in EXPERIMENT]
    if named and named[-1] not in ("", "null"):
        return None
    names = ", ".join(sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
    given = repr(named[-1]) if named else "not set"
    return (
        f"experiment is {given}; expected experiment=NAME, which sets data, model and "
        f"sizes: {names}, or your own file experiment/NAME.yaml in FOLDER, with --config-dir FOLDER"
    )


if __name__ == "__main__":
    if fault := missing_experiment(sys.argv[1:]):
        raise SystemExit(f"saw: {fault}")
    os.environ["SAW_COMMAND"] = shlex.join(["python", "-m", "saw", "train", *sys.argv[1:]])
    try:
        prepare_environment()
        import verl  # noqa: F401  it loads the plug-in, which refuses other versions
    except (accelerator.AcceleratorError, WrongVersion) as error:
        raise SystemExit(f"saw: {error}") from None
    command()
