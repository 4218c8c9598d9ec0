"""Train with verl's pipeline and this repository's configuration tree.

    python -m saw.train experiment=quickstart saw.method=saw_gdpo

The same as ``python -m verl.trainer.main_ppo`` with the plug-in loaded, for the configurations in ``configs/``.
"""

import os
import shlex
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from saw import cluster, handover, metrics_file


def prepare_environment() -> None:
    """Load the plug-in in every process that imports verl, and pick the CPU where there is no accelerator.

    ``SAW_PLATFORM``, cpu or gpu, picks the configuration group ``platform``; it is found out where it is not set. A
    machine that joins a running Ray cluster is never taken for a CPU machine: the accelerators may be elsewhere.
    """
    modules = [module for module in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",") if module]
    if "saw.verl" not in modules:
        os.environ["VERL_USE_EXTERNAL_MODULES"] = ",".join([*modules, "saw.verl"])
    if "SAW_PLATFORM" not in os.environ:
        os.environ["SAW_PLATFORM"] = "cpu" if _is_cpu_machine() else "gpu"
    if os.environ["SAW_PLATFORM"] == "cpu":
        os.environ["VERL_PLATFORM"] = "cpu"


def _is_cpu_machine() -> bool:
    if "VERL_PLATFORM" in os.environ:
        return os.environ["VERL_PLATFORM"] == "cpu"
    if "RAY_ADDRESS" in os.environ:
        return False
    import torch

    return not torch.accelerator.is_available()


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
    from saw.verl.forked_workers import py_executable

    OmegaConf.update(config, key, py_executable(), force_add=True)


@hydra.main(config_path="../configs", config_name="train", version_base=None)
def main(config: DictConfig) -> None:
    """Run verl's own entry point on a composed configuration."""
    from verl.trainer import main_ppo

    handover.settle(config)
    # verl checks again, after the metrics of an earlier training have made way: a refused start must not touch them.
    main_ppo.validate_config(
        config=config,
        use_reference_policy=main_ppo.need_reference_policy(config),
        use_critic=main_ppo.need_critic(config),
    )
    cluster.check(config, cluster.available(config))
    _keep_earlier_metrics(config)
    _fork_workers(config)
    with handover.handing_over(config):
        main_ppo.main(config)


if __name__ == "__main__":
    os.environ["SAW_COMMAND"] = shlex.join(["python", "-m", "saw.train", *sys.argv[1:]])
    prepare_environment()
    main()
