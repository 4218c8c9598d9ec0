"""Train with verl's pipeline and this repository's configuration tree.

    python -m saw train experiment=quickstart saw.method=saw_gdpo

The same as ``python -m verl.trainer.main_ppo`` with the plug-in loaded, for the configurations in ``configs/``.
"""

import os
import shlex
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from saw.machine import accelerator, cluster
from saw.records import metrics_file
from saw.runs import handover

#: Why this platform was picked, from the start of this process to the configuration that it composes.
REASON = "SAW_PLATFORM_REASON"


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


@hydra.main(config_path="../../configs", config_name="train", version_base=None)
def main(config: DictConfig) -> None:
    """Run verl's own entry point on a composed configuration."""
    from verl.trainer import main_ppo

    settle(config, os.environ.get("SAW_PLATFORM"))
    # verl checks again, after the metrics of an earlier training have made way: a refused start must not touch them.
    main_ppo.validate_config(
        config=config,
        use_reference_policy=main_ppo.need_reference_policy(config),
        use_critic=main_ppo.need_critic(config),
    )
    _choose(config)
    cluster.check(config, cluster.available(config))
    _keep_earlier_metrics(config)
    _fork_workers(config)
    with handover.handing_over(config):
        main_ppo.main(config)


if __name__ == "__main__":
    os.environ["SAW_COMMAND"] = shlex.join(["python", "-m", "saw", "train", *sys.argv[1:]])
    try:
        prepare_environment()
    except accelerator.AcceleratorError as error:
        raise SystemExit(f"saw: {error}") from None
    main()
