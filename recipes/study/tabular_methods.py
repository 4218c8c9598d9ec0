"""Every method in seven situations.

Five situations are as in the other parts of the study. *Conflicting*: one choice among twelve decides both objectives.
One earns 0.8 for both, another 1 for the first objective alone, a third 1 for the second alone; the first one counts
as right. *Gate*: the answer has 8 choices and the short form 2, and the form counts only if the answer is right, with
every method. Three more rows are without this condition, or with another one.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from recipes.study.tabular_parts import BASE, GOOD, Part, columns, show, steps_to
from recipes.study.tabular_world import Objective, Rule, Trajectories, World, learn
from saw.report.figures import COLOURS, figure_of
from saw.report.seed_statistics import Interval, bootstrap_mean
from saw.report.tables import markdown

STEPS = 250
_ANSWER = replace(GOOD, name="answer")
_FORM = Objective("short form", 2, noise=0.2)
_COMPROMISE = 0.8, 1.0, 0.0, *[0.0] * 9
_OTHER_WAY = 0.8, 0.0, 1.0, *[0.0] * 9

SITUATIONS: dict[str, World] = {
    "late objective": BASE,
    "rare": World((GOOD, Objective("other", 50))),
    "constant": World((GOOD, Objective("other", luck=1.0))),
    "luck": World((GOOD, Objective("other", luck=0.1))),
    "wrong minimum": World((GOOD, Objective("other", 8, noise=0.2, offset=5.0))),
    "conflicting": World(
        (Objective("first", 12, pays=_COMPROMISE), Objective("second", 12, shares=0, pays=_OTHER_WAY))
    ),
    "gate": World((_ANSWER, replace(_FORM, requires={"answer": 0.5}))),
}
_OPEN_GATE = World((_ANSWER, _FORM))
_PAPO_GATE = World((_ANSWER, replace(_FORM, requires={"answer": 0.5}, otherwise="missing")))
#: Rows that exist in the situation "gate" only: the method and the world.
GATES: dict[str, tuple[str, World]] = {
    "grpo, no condition": ("grpo", _OPEN_GATE),
    "gdpo, no condition": ("gdpo", _OPEN_GATE),
    "mo_grpo, missing (PAPO)": ("mo_grpo", _PAPO_GATE),
}

#: The methods by family. Options are the defaults, except those that a method cannot do without or that depend on the
#: size of the gradients.
FAMILIES: dict[str, dict[str, dict]] = {
    "sum, then normalise": {"grpo": {}, "corr_grpo": {}, "tchebycheff": {}, "hvo": {}},
    "normalise, then sum": {"gdpo": {}, "mo_grpo": {}, "corr_gdpo": {}, "gd2po": {}, "gd2po_snr": {}},
    "weights from rewards": {
        "saw_grpo": {},
        "saw_gdpo": {},
        "dvao": {},
        "ctwa": {},
        "lagrangian": {"lagrangian": {"lr": 0.05}},
    },
    "weights from gradients": {
        "gradient_grpo": {"gradient": {"lr": 1e-6}},
        "gradient_gdpo": {"gradient": {"lr": 1e-6}},
        "mgda": {},
        "gradnorm": {},
    },
    "controls": {
        "random_gdpo": {},
        "static_gdpo 1:3": {"static_weights": (1.0, 3.0)},
    },
}


def methods(seeds: int, out: Path) -> Part:
    """Steps until everything that can be learned is learned, and the area under its curve, by method and situation."""
    jobs = [(situation, name) for situation in SITUATIONS for name in _names(situation)]
    with ProcessPoolExecutor(
        2, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        found = dict(zip(jobs, pool.map(partial(_measure, seeds), *zip(*jobs, strict=True)), strict=True))
    rows = [
        {"situation": situation, "method": name, "family": family_of(name), "seeds": seeds}
        | columns("steps", steps)
        | columns("area", area)
        for (situation, name), (steps, area) in found.items()
    ]
    names = list(dict.fromkeys(name for _, name in jobs))
    lines = [[name, *(_cell(found.get((situation, name))) for situation in SITUATIONS)] for name in names]
    _figure(found, names, seeds, out)
    text = (
        "Each cell: steps until every objective that can be learned is right with probability 0.9, and after the "
        f"semicolon the mean of that probability over {STEPS} steps (the area under the curve). Brackets: 95 % "
        f"bootstrap intervals over seeds; {STEPS + 1} steps mean never. Advantages are divided by the root mean square "
        "of the run's advantages so far, as Adam does with gradients, so that no method gains by larger steps. The "
        "numbers therefore differ from those of the other pages. There are two objectives and one learning rate, and "
        "all options have their defaults, with two exceptions. Lagrangian has a step size of 0.05, and a target that "
        "its second objective reaches at a probability of 0.95. The gradient methods have the released lr/mu of 0.1. "
        "The last three rows show the gate without its condition, and with form missing where the answer is wrong "
        "instead of at its minimum."
    )
    return Part(rows, markdown(["method", *SITUATIONS], lines, left=1), text)


def family_of(name: str) -> str:
    """The family of the method in a row of the table."""
    method = name.split(", ")[0]
    return next(family for family, members in FAMILIES.items() if method in members)


def _names(situation: str) -> list[str]:
    names = [name for members in FAMILIES.values() for name in members]
    return names + list(GATES) if situation == "gate" else names


def _measure(seeds: int, situation: str, name: str) -> tuple[Interval, Interval]:
    """Steps and area of one method in one situation."""
    method, world = GATES.get(name, (name, SITUATIONS[situation]))
    options = FAMILIES[family_of(method)][method]
    if method == "lagrangian":
        options = {method: options[method] | {"targets": (None, target(world.objectives[1]))}}
    found = learn(replace(world, steps=STEPS, adaptive=True), Rule(method.split()[0], options), seeds)
    own = [k for k, objective in enumerate(world.objectives) if objective.luck is None]
    steps = np.max([steps_to(found, k) for k in own], axis=0)
    return bootstrap_mean(steps), bootstrap_mean(_area(found, own))


def target(objective: Objective) -> float:
    """The mean reward at which an objective is right with probability 0.95; what luck always reaches."""
    if objective.luck is not None:
        return 0.95 * objective.luck
    pays = 1.0 if objective.pays is None else objective.pays[0]
    return 0.95 * pays * (1.0 - objective.noise / 2) + objective.offset


def _area(found: Trajectories, objectives: list[int]) -> np.ndarray:
    return found.right[:, 1:, objectives].mean(dim=(1, 2)).numpy()


def _cell(measured: tuple[Interval, Interval] | None) -> str:
    if measured is None:
        return ""
    steps, area = measured
    return f"{show(steps)}; {show(area, 3)}"


def _figure(found: dict[tuple[str, str], tuple[Interval, Interval]], names: list[str], seeds: int, out: Path) -> None:
    colours = dict(zip(FAMILIES, COLOURS, strict=False))
    with figure_of(2, 4, (13.0, 8.0)) as (figure, axes):
        for number, (axis, situation) in enumerate(zip(axes.flat, SITUATIONS, strict=False)):
            for place, name in enumerate(reversed(names)):
                if (situation, name) in found:
                    steps, _ = found[situation, name]
                    axis.plot([steps.low, steps.high], [place, place], color=colours[family_of(name)], linewidth=1.4)
                    axis.plot(steps.mean, place, "o", color=colours[family_of(name)], markersize=4)
            axis.set_title(situation, fontsize=9)
            axis.set_yticks(
                range(len(names)), list(reversed(names)) if number % 4 == 0 else [""] * len(names), fontsize=7
            )
            axis.set_ylim(-0.5, len(names) - 0.5)
            axis.grid(alpha=0.25)
            axis.set_xlabel("steps until all is learned")
        for family, colour in colours.items():
            axes[1][3].plot([], [], "o-", color=colour, label=family)
        axes[1][3].axis("off")
        axes[1][3].legend(frameon=False, fontsize=8, loc="center")
        figure.suptitle(f"Every method in seven situations; mean and 95 % interval of {seeds} seeds", fontsize=10)
        figure.savefig(out / "methods.png", dpi=130)
