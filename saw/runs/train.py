"""Train with verl's pipeline and this repository's configuration tree.

    python -m saw train experiment=quickstart saw.method=saw_gdpo

The same as ``python -m verl.trainer.main_ppo`` with the plug-in loaded, for the configurations in ``configs/``.
Everything that can be looked at is, before anything of an earlier training in the same folder is touched.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from saw.machine import accelerator, cluster
from saw.records import metrics_file
from saw.runs import handover

#: Why this platform was picked, from the start of this process to the configuration that it composes.
REASON = "SAW_PLATFORM_REASON"
EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiment"
#: How a command line names an experiment.
EXPERIMENT = ("experiment", "+experiment", "++experiment")
#: Options by which Hydra shows something instead of starting a training.
ASKS_HYDRA = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def prepare_environment() -> None:
    """Load the plug-in in every process that imports verl, and pick the platform.

    ``SAW_PLATFORM``, cpu or gpu, picks the configuration group ``platform``; :mod:`saw.machine.accelerator` decides
    where it is not set.

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
    """Make a configuration mean the same in any process, and refuse what neither verl nor the method looks at.

    The doctor calls it too. A start that is refused must not touch the metrics of an earlier training.

    Args:
        config (DictConfig): verl's whole configuration.
        platform (str | None): cpu or gpu, by :mod:`saw.machine.accelerator`; None if nobody has decided.

    Raises:
        ValueError: naming the key.
    """
    from saw.verl.config import ConfigError

    handover.settle(config)
    cluster.needed(config)  # names a count that is none; verl would divide by it
    device = config.trainer.device
    if platform and (device == "cpu") != (platform == "cpu"):  # by platform=... on the command line
        raise ConfigError(
            f"trainer.device is {device!r}, and verl was told to use the {platform} ({os.environ.get(REASON)}); "
            "pick the platform by SAW_PLATFORM=cpu or SAW_PLATFORM=gpu, for both"
        )


def _choose(config: DictConfig) -> None:
    """Choose what the configuration leaves open, and keep what was chosen for ``run.json``, which holds all of it."""
    from saw.verl import attention

    chosen = {"platform": os.environ.get(REASON, "by whoever called saw.runs.train.main")}
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
    """Have verl's file logger write beside the checkpoints, and keep what a resumed training logged before."""
    if "file" in config.trainer.logger:
        path = Path(config.trainer.default_local_dir) / "metrics.jsonl"
        path = Path(os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(path.resolve())))
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics_file.begin(path, resume=config.trainer.resume_mode != "disable")


def _fork_workers(config: DictConfig) -> None:
    """On a CPU, and in a Ray of this process's own, have one process import for all workers."""
    key = "ray_kwargs.ray_init.runtime_env.py_executable"
    if os.environ.get("VERL_PLATFORM") != "cpu" or cluster.running(config) or OmegaConf.select(config, key):
        return
    from saw.verl.patches.forked_workers import py_executable

    OmegaConf.update(config, key, py_executable(), force_add=True)


def check(config: DictConfig, platform: str | None) -> None:
    """Make a configuration ready for verl, with everything chosen that it leaves open; touch nothing.

    Args:
        config (DictConfig): verl's whole configuration.
        platform (str | None): cpu or gpu; None if nobody has decided.

    Raises:
        ValueError: naming the key, for what can't work, or isn't there.
    """
    from verl.trainer import main_ppo

    from saw.runs import inputs
    from saw.verl.config import ConfigError

    settle(config, platform)
    if not config.trainer.use_v1:
        raise ConfigError("trainer.use_v1 is False; expected True: verl's older trainers are not started from here")
    main_ppo.auto_set_device(config)
    main_ppo.validate_config(  # SAW's own checks are in it (saw/verl/patches/validate_config.py)
        config=config,
        use_reference_policy=main_ppo.need_reference_policy(config),
        use_critic=main_ppo.need_critic(config),
    )
    _choose(config)
    inputs.check(config)
    cluster.check(config, cluster.available(config))


@hydra.main(config_path="pkg://saw.configs", config_name="train", version_base=None)
def main(config: DictConfig) -> None:
    """Check a composed configuration, then do what verl's own entry point does after its check."""
    from verl.trainer import main_ppo

    check(config, os.environ.get("SAW_PLATFORM"))
    _keep_earlier_metrics(config)
    _fork_workers(config)
    with handover.handing_over(config):
        main_ppo.run_ppo(config, task_runner_class=main_ppo.TaskRunnerV1)


def missing_experiment(arguments: Sequence[str]) -> str | None:
    """What to say to a command line that names no experiment; None if it does, or only asks Hydra something.

    Without one there is neither data nor a model, and no group ``reading`` that an override could pick from.
    """
    if any(argument.split("=")[0] in ASKS_HYDRA for argument in arguments):
        return None
    named = [value for key, _, value in (argument.partition("=") for argument in arguments) if key in EXPERIMENT]
    if named and named[-1] not in ("", "null"):
        return None
    known = (path.relative_to(EXPERIMENTS).with_suffix("") for path in EXPERIMENTS.rglob("*.yaml"))
    names = ", ".join(sorted(name.as_posix() for name in known if name.name != "base"))
    return (
        f"experiment is {named[-1] if named else 'not set'}; expected experiment=NAME, which says data, model and "
        f"sizes. There are {names}; a file of your own: --config-dir FOLDER, with experiment/NAME.yaml in it"
    )


if __name__ == "__main__":
    if fault := missing_experiment(sys.argv[1:]):
        raise SystemExit(f"saw: {fault}")
    os.environ["SAW_COMMAND"] = shlex.join(["python", "-m", "saw", "train", *sys.argv[1:]])
    try:
        prepare_environment()
    except accelerator.AcceleratorError as error:
        raise SystemExit(f"saw: {error}") from None
    main()
