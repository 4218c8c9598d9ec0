"""The command ``saw``: one name for everything that can be started.

Each command passes its arguments to a module, which has its own options and ``--help``, and becomes that process:
stopping ``saw train`` stops the training. :mod:`saw.command` runs the module.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

#: Where recipes, data and benchmarks are, which an installed package does not include.
CHECKOUT = Path(__file__).resolve().parents[1]

#: The options that show a command's help, where they come first.
HELP = ("--help", "-h")


@dataclass(frozen=True)
class Command:
    """A command of ``saw``.

    Attributes:
        help (str): one line.
        example (str): working arguments.
        module (str): the module that runs; empty if the command has parts.
        choices (tuple): the parts, as pairs of the first argument and the module.
    """

    help: str
    example: str
    module: str = ""
    choices: tuple[tuple[str, str], ...] = ()


COMMANDS = {
    "train": Command(
        "Train with verl's pipeline and a configuration of configs/.",
        "experiment=quickstart saw.method=saw_gdpo",
        "saw.runs.train",
    ),
    "quickstart": Command(
        "Train GRPO and SAW-GDPO on a small task, from data to figure.",
        "--method saw_gdpo --steps 8",
        "recipes.quickstart.run",
    ),
    "sweep": Command(
        "Train an experiment with several methods and seeds.",
        "--experiment quickstart --method gdpo --method saw_gdpo --seeds 1,2,3",
        "recipes.ablations.sweep",
    ),
    "report": Command(
        "Compare trainings: tables, figures and a page.",
        "runs/quickstart/checkpoints --baseline grpo",
        "saw.report",
    ),
    "dashboard": Command(
        "Create or update a wandb dashboard of the trainings.",
        "--project NAME",
        "saw.report.dashboard",
    ),
    "reproduce": Command(
        "Reproduce a table of the paper, from the raw data on.",
        "table1 --source rlla_rl.json --model 1.5b --method saw_gdpo --dry-run",
        choices=(("table1", "recipes.toolrl.reproduce"), ("table2", "recipes.tldr.reproduce")),
    ),
    "study": Command(
        "Run our studies: a simulation, and small language models.",
        "tabular --seeds 300",
        choices=(
            ("tabular", "recipes.study.tabular_study"),
            ("lm", "recipes.study.language_model"),
            ("lean", "recipes.study.lean_study"),
            ("smollm2", "recipes.study.smollm2_study"),
        ),
    ),
    "benchmark": Command(
        "Time the estimators, rewards, the judge, a step or a start.",
        "advantage --sizes 2048x1024",
        choices=tuple((name, f"benchmarks.{name}") for name in ("advantage", "rewards", "judge", "step", "start")),
    ),
    "memory": Command(
        "Estimate the GPU memory of a training.",
        "--model 1.5b --gpus 4 --gpu-memory 80",
        "saw.memory",
    ),
    "doctor": Command(
        "Check whether a training can start, and what to do if not.",
        "experiment=quickstart",
        "saw.doctor",
    ),
}

app = typer.Typer(
    help="SAW: dynamic weights for several rewards in RL training, as a plug-in for verl.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": list(HELP)},
)


def start(name: str, arguments: list[str]) -> None:
    """Become the process of a command.

    Raises:
        typer.BadParameter: if the first argument is not one of the command's parts.
        typer.Exit: if the command needs the repository, and this is an installed package without it, or the current
            folder has another package of that name.
    """
    command = COMMANDS[name]
    module, rest, parts = command.module, arguments, dict(command.choices)
    if arguments and arguments[0] in HELP:
        typer.echo(f"{command.help}\n\n    saw {name} {command.example}\n")
        if parts:
            typer.echo(f"The first argument is one of {', '.join(parts)}; each has its own --help.")
            return
        if name == "train":
            typer.echo("Overrides are Hydra's: KEY=VALUE. saw train --hydra-help lists its options.")
            return
    elif parts:
        given = arguments[0] if arguments else None
        if given not in parts:
            first = "there is no first argument" if given is None else f"the first argument is {given!r}"
            raise typer.BadParameter(
                f"{first}; expected {' or '.join(parts)}, for example: saw {name} {command.example}"
            )
        module, rest = parts[given], arguments[1:]
    environment = dict(os.environ)
    package = module.partition(".")[0]
    if (CHECKOUT / "pyproject.toml").is_file():  # recipes, data and benchmarks are not in the package
        _refuse_hidden(package)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(CHECKOUT)]))
    elif not importlib.util.find_spec(package):
        typer.echo(f"saw {name} needs the repository, but only the package is installed: clone it", err=True)
        raise typer.Exit(2)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "saw.command", module, *rest], environment)


def _refuse_hidden(package: str) -> None:
    """Refuse to start in a folder with a package of the same name, which ``python -m`` would find first."""
    own = os.path.join(package, "__init__.py")
    if os.path.isfile(own) and not os.path.samefile(own, CHECKOUT / own):
        typer.echo(
            f"the current folder has a package {package!r} of its own, which hides that of {CHECKOUT}: start saw from "
            "another folder",
            err=True,
        )
        raise typer.Exit(2)


def _add(name: str, command: Command) -> None:
    def run(context: typer.Context) -> None:
        start(name, context.args)

    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help=f"{command.help} Example: saw {name} {command.example}", context_settings=settings)(run)


for _name, _command in COMMANDS.items():
    _add(_name, _command)
