"""Train an experiment with several methods and seeds, one after another, and draw their curves together.

    bash scripts/sweep.sh --experiment quickstart --method saw_gdpo --method gdpo --seeds 1,2,3 [KEY=VALUE ...]

Finished trainings are skipped, others resume from their checkpoint (the quickstart saves none unless trainer.save_freq
is set). KEY=VALUE are Hydra overrides of all trainings; ``--method`` may have its own, separated by commas:
``--method saw_gdpo,saw.options.ema=0.5``. The quickstart's data and model are made if they do not exist.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from recipes.common.reproduce import OF_EACH_TRAINING, refuse_own, run_main, seed_list, time_limit
from recipes.common.stages import Stage, check, run_all, show
from recipes.common.toys import curves, toy_model, toy_rows
from saw.method.registry import METHODS
from saw.runs.compose import CONFIGS, checked_override, parse_override

#: Experiment -> its toy model's path in the folder of all runs, and how it is made. At the start, the study's model
#: almost never has a correct format but sometimes the right call, so format has more to learn.
TOY_MODELS = {
    "quickstart": ("quickstart/model",),
    "study": ("study_toys/model", "--steps", "1200", "--spoilt-format", "0.85", "--wrong-value", "0.4"),
}

#: Setting that tells the trainings apart -> the option to use instead of an override.
TOLD_APART_BY = {**OF_EACH_TRAINING, "experiment": "--experiment"}
#: As before, for a study, which has one experiment and a folder of its own below ``$SAW_RUNS``.
TOLD_APART_IN_A_STUDY = {
    **TOLD_APART_BY,
    "experiment": "another study",
    "trainer.default_local_dir": "SAW_RUNS, the folder of all runs",
    "trainer.experiment_name": "SAW_RUNS: a training has the name of its folder",
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="saw sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the script looks for the full --dry-run before set-up
    )
    parser.add_argument("--experiment", default="quickstart", help="in configs/experiment (quickstart)")
    parser.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="NAME[,KEY=VALUE...]",
        help=f"may be repeated; names: {', '.join(METHODS)}",
    )
    parser.add_argument("--seeds", type=seed_list, default=[1], metavar="1,2,3", help="one training each (1)")
    parser.add_argument("--hours", type=time_limit, default=72, help="time limit of a training, in hours (72)")
    parser.add_argument("--out", type=Path, help="folder for everything ($SAW_RUNS/sweep/EXPERIMENT)")
    parser.add_argument("--dry-run", action="store_true", help="print every command, and check the settings")
    parser.add_argument(
        "overrides", nargs="*", type=checked_override, metavar="KEY=VALUE", help="Hydra overrides of all trainings"
    )
    arguments = parser.parse_args(argv)
    if not (CONFIGS / "experiment" / f"{arguments.experiment}.yaml").is_file():
        parser.error(f"--experiment {arguments.experiment}: there is no such file in configs/experiment")
    for method in arguments.method:
        name, *own = split(method)
        if name not in METHODS:
            parser.error(f"--method {name}: expected one of {', '.join(METHODS)}")
        try:
            for override in own:
                parse_override(override)
        except argparse.ArgumentTypeError as fault:
            parser.error(f"--method {method}: {fault}")
        refuse_own(parser, own, TOLD_APART_BY)
    refuse_own(parser, arguments.overrides, TOLD_APART_BY)
    runs = Path(os.environ.get("SAW_RUNS", "runs"))
    arguments.out = (arguments.out or runs / "sweep" / arguments.experiment).resolve()
    return arguments


def split(method: str) -> list[str]:
    """A method and its overrides, split at commas before a ``KEY=``, so not within ``static_weights=[1,3]``."""
    name, *rest = method.split(",", 1)
    return [name, *(override for text in rest for override in re.split(r",(?=[^,=]+=)", text))]


def label(method: str) -> str:
    """A method with its overrides as the name of a folder."""
    return re.sub(r"[^\w.+-]+", "_", method)


def plan(arguments: argparse.Namespace) -> dict[str, list[Stage]]:
    """One training for each method and seed, by the name of its folder; the seeds of a method run one after another."""
    chains = {}
    for seed in arguments.seeds:
        for method in dict.fromkeys(arguments.method):
            name, *own = split(method)
            folder = arguments.out / f"{label(method)}_seed{seed}"
            command = (
                *("-m", "saw.runs.train", f"experiment={arguments.experiment}", f"saw.method={name}"),
                *(f"data.seed={seed}", f"trainer.default_local_dir={folder}", f"trainer.experiment_name={folder.name}"),
                *("trainer.resume_mode=auto", *own, *arguments.overrides),
            )
            chains[folder.name] = [Stage("train", folder, command, arguments.hours, trains=True)]
    return chains


def toys(experiment: str) -> list[Stage]:
    """The stages that make an experiment's toy data and model, if it needs them and they do not exist."""
    if experiment not in TOY_MODELS:
        return []
    runs = Path(os.environ.get("SAW_RUNS", "runs")).resolve()
    model, *options = TOY_MODELS[experiment]
    return [*toy_rows(runs / "quickstart" / "data"), *toy_model(runs / model, *options)]


def report(arguments: argparse.Namespace, chains: dict[str, list[Stage]]) -> None:
    """Table and curves of the finished trainings."""
    finished = {name: stage for name, (stage,) in chains.items() if stage.is_done()}
    if not finished:
        return
    picture = arguments.out / "curves.png"
    table = curves(finished, picture, title=f"{arguments.experiment}: {len(finished)} trainings")
    (arguments.out / "summary.md").write_text(table + "\n")
    print(f"\n{table}\n\npicture: {os.path.relpath(picture)}")


def main() -> None:
    """Command line."""
    arguments = parse()
    shared, chains = toys(arguments.experiment), plan(arguments)
    if arguments.dry_run:
        check(shared, chains)
        show(shared, chains)
        return
    run_all(shared, chains, lambda: report(arguments, chains))


if __name__ == "__main__":
    run_main(main)
