"""Train with verl's pipeline and this repository's configuration tree.

    python -m saw.train experiment=quickstart saw.method=saw_gdpo

The same as ``python -m verl.trainer.main_ppo`` with the plug-in loaded, for the configurations in ``configs/``.
"""

import os

import hydra
from omegaconf import DictConfig


def prepare_environment() -> None:
    """Load the plug-in in every process that imports verl, and pick the CPU where there is no accelerator.

    A machine that joins a running Ray cluster decides nothing: the accelerators may be elsewhere.
    """
    modules = [module for module in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",") if module]
    if "saw.verl" not in modules:
        os.environ["VERL_USE_EXTERNAL_MODULES"] = ",".join([*modules, "saw.verl"])
    if "VERL_PLATFORM" not in os.environ and "RAY_ADDRESS" not in os.environ:
        import torch

        if not torch.accelerator.is_available():
            os.environ["VERL_PLATFORM"] = "cpu"


@hydra.main(config_path="../configs", config_name="train", version_base=None)
def main(config: DictConfig) -> None:
    """Run verl's own entry point on a composed configuration."""
    from verl.trainer.main_ppo import main as verl_main

    verl_main(config)


if __name__ == "__main__":
    prepare_environment()
    main()
