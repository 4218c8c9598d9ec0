"""Questions that the tabular world can answer; each is a part, see ``--help``.

    bash scripts/study.sh tabular [--seeds 300] [--only speeds] [--out results/study/tabular]

Every part writes a table (Markdown, CSV), some also a picture. Steps to a threshold are those after which the policy is
right with probability 0.9, computed exactly from its logits. A seed that never gets there counts as one step more than
the run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats
from torch import Tensor

from recipes.study.tabular_methods import methods
from recipes.study.tabular_parts import BASE, GOOD, THRESHOLD, Part, columns, exact_weights, line, show, steps_to
from recipes.study.tabular_window import window
from recipes.study.tabular_world import Objective, Rule, World, learn
from saw.records.provenance import commit, machine, versions
from saw.report.figures import COLOURS, figure_of
from saw.report.seed_statistics import bootstrap_mean, equivalence
from saw.report.tables import markdown, write_csv

# ---------------------------------------------------------------- 1. speeds

RULES: dict[str, Rule] = {
    **{name: Rule(name) for name in ("grpo", "saw_grpo", "random_grpo")},
    "static_grpo 1:3": Rule("static_grpo", {"static_weights": [1, 3]}),
    **{name: Rule(name) for name in ("gdpo", "saw_gdpo", "random_gdpo")},
    "static_gdpo 1:3": Rule("static_gdpo", {"static_weights": [1, 3]}),
    "mo_grpo": Rule("mo_grpo"),
    "dvao": Rule("dvao"),
    **{
        f"saw_gdpo, {measure}": Rule("saw_gdpo", {"informativeness": measure})
        for measure in ("normalised_variance", "range_std", "advantage_entropy", "group_spread")
    },
}


def speeds(seeds: int, out: Path) -> Part:
    """Steps to each objective's threshold by method, compared with equal weights of the same family, seed by seed."""
    found = {name: learn(BASE, rule, seeds) for name, rule in RULES.items()}
    rows, lines = [], []
    for name, trajectories in found.items():
        base = "grpo" if "grpo" in name and name != "mo_grpo" else "gdpo"
        row: dict = {"method": name, "seeds": seeds}
        cells = []
        for k, objective in enumerate(BASE.objectives):
            steps = steps_to(trajectories, k)
            gap = bootstrap_mean(steps - steps_to(found[base], k))
            interval = bootstrap_mean(steps)
            row |= columns(f"{objective.name}_steps", interval) | columns(f"{objective.name}_less_equal", gap)
            cells += [show(interval), "" if name == base else show(gap)]
        both = bootstrap_mean(np.maximum(steps_to(trajectories, 0), steps_to(trajectories, 1)))
        final = bootstrap_mean(trajectories.right[:, -1, 0].numpy())
        row |= columns("both_steps", both) | columns("early_final", final)
        rows.append(row)
        lines.append([name, *cells, show(both), show(final, 3)])
    header = ["method", "early: steps", "minus equal weights", "late: steps", "minus equal weights", "both: steps"]
    header.append("early: final P(right)")
    shown = ("grpo", "saw_grpo", "gdpo", "saw_gdpo", "random_gdpo")
    with figure_of(2, 2, (9.0, 6.0)) as (figure, axes):
        for place, name in enumerate(shown):
            for k, objective in enumerate(BASE.objectives):
                for row_of_axes, values, label in (
                    (0, found[name].right[:, 1:, k], "P(right)"),
                    (1, found[name].weights[:, :, k], "weight"),
                ):
                    axis = axes[row_of_axes][k]
                    line(axis, values, name, COLOURS[place])
                    axis.set_ylabel(label)
                    axis.set_title(objective.name if row_of_axes == 0 else "")
        axes[0][1].legend(frameon=False, fontsize=8)
        axes[1][0].set_xlabel("step")
        axes[1][1].set_xlabel("step")
        figure.suptitle(f"Two speeds; mean and 5 to 95 % of {seeds} seeds", fontsize=10)
        figure.savefig(out / "speeds.png", dpi=130)
    text = (
        "Two objectives, with 2 and 20 choices; once learned, each still has noise with a standard deviation of 0.17. "
        f"{BASE.prompts} prompts x {BASE.rollouts} rollouts per step, learning rate {BASE.lr}. "
        "Brackets: 95 % bootstrap intervals."
    )
    return Part(rows, markdown(header, lines, left=1), text)


# ---------------------------------------------------------------- 2. falsifier

#: Largest difference in steps that would not matter, relative to equal weights. Set before the runs.
MARGIN = 0.02


def falsifier(seeds: int, out: Path) -> Part:
    """Objectives whose spread shrinks together: SAW should equal static weights; tested for equivalence (TOST)."""
    same = World((Objective("first", 8, noise=0.6), Objective("second", 8, noise=0.6)), steps=200)
    shifted = World((Objective("first", 8, noise=0.6), Objective("second", 8, noise=0.6, offset=0.5)), steps=200)
    rows, lines = [], []
    for label, world in (("the same objective twice", same), ("the second with an offset of 0.5", shifted)):
        for family in ("grpo", "gdpo"):
            saw_found = learn(world, Rule(f"saw_{family}"), seeds)
            mean_weights = saw_found.weights.mean(dim=(0, 1)).tolist()
            static = learn(world, Rule(f"static_{family}", {"static_weights": mean_weights}), seeds)
            equal = learn(world, Rule(family), seeds)
            for against, other in (("equal weights", equal), ("static weights, SAW's mean", static)):
                first = np.maximum(steps_to(saw_found, 0), steps_to(saw_found, 1))
                second = np.maximum(steps_to(other, 0), steps_to(other, 1))
                margin = MARGIN * float(second.mean())
                gap, p = equivalence(first - second, margin)
                difference = float(stats.ttest_rel(first, second).pvalue)
                verdict = "equivalent" if p < 0.05 else "not shown to be equivalent"
                rows.append(
                    {"world": label, "family": family, "against": against, "seeds": seeds, "margin": margin}
                    | columns("difference", gap)
                    | {"p_equivalence": p, "p_difference": difference, "weight_first": mean_weights[0]}
                )
                cells = [f"{mean_weights[0]:.2f}", show(gap, 2), f"±{margin:.2f}", f"{p:.2g}", f"{difference:.2g}"]
                lines.append([label, f"saw_{family}", against, *cells, verdict])
    header = ["world", "method", "compared with", "weight of the first", "steps until both are learned, difference"]
    header += ["margin", "p, equivalence", "p, difference", "verdict"]
    text = (
        "Equivalent (TOST): the 90 % interval of the difference lies within the margin, "
        f"{MARGIN:.0%} of the other method's steps, set before the runs. Differences are paired by seed."
    )
    return Part(rows, markdown(header, lines, left=3), text)


# ---------------------------------------------------------------- 3. where CV misleads

CASES: dict[str, tuple[Objective, str]] = {
    "noise that cannot be learned, 1 in 10": (Objective("other", luck=0.1), "a reward that is luck"),
    "noise that cannot be learned, 1 in 2": (Objective("other", luck=0.5), "a reward that is luck"),
    "a constant, 1 for every sample": (Objective("other", luck=1.0), "a judge that always gives the same score"),
    "large offset, minimum not configured": (Objective("other", 8, noise=0.2, offset=5.0), "a wrong minimum"),
    "rare binary reward, 1 in 50 at first": (Objective("other", 50), "a hard task"),
    "already learned, with leftover noise": (Objective("other", 2, start=0.98, noise=0.6), "an easy format"),
}


def misleading(seeds: int, out: Path) -> Part:
    """A good objective beside an odd one: does SAW speed up or slow down what can be learned?"""
    rows, lines = [], []
    for label, (other, like) in CASES.items():
        world = World((GOOD, other), steps=400)
        for family in ("grpo", "gdpo"):
            base, found = learn(world, Rule(family), seeds), learn(world, Rule(f"saw_{family}"), seeds)
            weight = float(found.weights[:, :20, 1].mean())
            row: dict = {"case": label, "family": family, "seeds": seeds, "weight_of_other_first_20": weight}
            cells, gaps = [], []
            for k, objective in enumerate(world.objectives):
                if objective.luck is not None or objective.start is not None:
                    cells.append("")
                    continue
                gap = bootstrap_mean(steps_to(found, k) - steps_to(base, k))
                gaps.append(gap)
                row |= columns(f"{objective.name}_steps_{family}", bootstrap_mean(steps_to(base, k)))
                row |= columns(f"{objective.name}_difference", gap)
                cells.append(f"{show(gap)} of {steps_to(base, k).mean():.0f}")
            better, worse = any(gap.high < 0 for gap in gaps), any(gap.low > 0 for gap in gaps)
            verdict = {(True, False): "helps", (False, True): "hurts", (True, True): "trades one for the other"}
            rows.append(row | {"verdict": verdict.get((better, worse), "no difference")})
            lines.append([label, like, f"saw_{family}", f"{weight:.2f}", *cells, rows[-1]["verdict"]])
    header = ["the other objective", "for example", "method", "its weight, first 20 steps"]
    header += ["good: steps, minus equal weights", "other: steps, minus equal weights", "SAW"]
    text = "The good objective has 8 choices. Differences are paired by seed; negative means that SAW is faster."
    return Part(rows, markdown(header, lines, left=3), text)


# ---------------------------------------------------------------- 4. batch size

PROMPTS = (2, 4, 8, 16, 32, 64, 128)


def batch_size(seeds: int, out: Path) -> Part:
    """Error of the weights, and the outcome, against the number of samples; with and without smoothing."""
    rules = {
        "gdpo": Rule("gdpo"),
        "saw_gdpo": Rule("saw_gdpo"),
        "saw_gdpo, ema 0.8": Rule("saw_gdpo", {"ema": 0.8}),
        "saw_gdpo, floor 0.2": Rule("saw_gdpo", {"floor": 0.2}),
    }
    rows, lines = [], []
    for prompts in PROMPTS:
        # The gradient is a mean over the samples: with fewer of them it is noisier, not smaller.
        world = replace(BASE, prompts=prompts)
        for name, rule in rules.items():
            found = learn(world, rule, seeds)
            error = float((found.weights - exact_weights(world, found.right[:, :-1])).square().mean().sqrt())
            late, early = (bootstrap_mean(steps_to(found, k)) for k in (1, 0))
            fails = float((found.reached(1, THRESHOLD) > world.steps).double().mean())
            row = {"prompts": prompts, "samples": prompts * world.rollouts, "method": name, "seeds": late.n}
            rows.append(
                row
                | {"weight_error": error if name != "gdpo" else None, "late_never": fails}
                | columns("early_steps", early)
                | columns("late_steps", late)
            )
            cells = ["" if name == "gdpo" else f"{error:.3f}", show(early), show(late), f"{fails:.1%}"]
            lines.append([str(prompts * world.rollouts), name, *cells])
    with figure_of(1, 2, (9.0, 3.6)) as (figure, axes):
        for place, name in enumerate(rules):
            own = [row for row in rows if row["method"] == name]
            samples = [row["samples"] for row in own]
            style = {"color": COLOURS[place], "marker": "os^D"[place], "label": name, "linewidth": 1.4, "markersize": 4}
            if name != "gdpo":
                axes[0][0].plot(samples, [row["weight_error"] for row in own], **style)
            axes[0][1].plot(samples, [row["late_steps"] for row in own], **style)
        for axis, label in zip(axes[0], ("error of the weights (root mean square)", "late: steps to 0.9"), strict=True):
            axis.set_xscale("log", base=2)
            axis.set_xlabel("samples per step")
            axis.set_ylabel(label)
            axis.grid(alpha=0.25)
        axes[0][1].legend(frameon=False, fontsize=8)
        figure.savefig(out / "batch_size.png", dpi=130)
    header = ["samples", "method", "error of the weights", "early: steps", "late: steps", "late never learned"]
    text = "Error: root mean square difference from the weights for an infinite batch, over all steps and seeds."
    return Part(rows, markdown(header, lines, left=2), text)


# ---------------------------------------------------------------- 5. the KL confound


def released_rule(method: str, feels_penalty: bool) -> Rule:
    """A method with the released code's constants: the penalty is subtracted from the rewards' sum, not their mean."""
    return Rule(method, {"profile": "released"}, feels_penalty)


def kl(seeds: int, out: Path) -> Part:
    """Plain GRPO and SAW-GRPO, each with and without the penalty: the released comparison mixes the two effects."""
    rows, lines = [], []
    for penalty in (0.05, 0.2):
        world = replace(BASE, penalty=penalty)
        found = {
            (method, feels): learn(world, released_rule(method, feels), seeds)
            for method in ("grpo", "saw_grpo")
            for feels in (True, False)
        }
        comparisons = {
            "as released: SAW without the penalty, GRPO with it": (("saw_grpo", False), ("grpo", True)),
            "weighting alone: both with the penalty": (("saw_grpo", True), ("grpo", True)),
            "weighting alone: both without the penalty": (("saw_grpo", False), ("grpo", False)),
            "penalty alone: GRPO without it minus GRPO with it": (("grpo", False), ("grpo", True)),
        }
        for label, (first, second) in comparisons.items():
            row: dict = {"penalty": penalty, "comparison": label, "seeds": seeds}
            cells = []
            for k, objective in enumerate(world.objectives):
                steps = bootstrap_mean(steps_to(found[first], k) - steps_to(found[second], k))
                final = bootstrap_mean((found[first].right[:, -1, k] - found[second].right[:, -1, k]).numpy())
                row |= columns(f"{objective.name}_steps", steps) | columns(f"{objective.name}_final", final)
                cells += [show(steps), show(final, 4)]
            rows.append(row)
            lines.append([f"{penalty:g}", label, *cells])
    header = ["penalty", "comparison", "early: steps", "early: final P(right)", "late: steps", "late: final P(right)"]
    text = (
        "Differences, first minus second, paired by seed. As in the released code, the penalty is subtracted from the "
        "sum of the rewards (for SAW, from a weighted sum with weights that add up to 2)."
    )
    return Part(rows, markdown(header, lines, left=2), text)


# ---------------------------------------------------------------- 6. CV as a signal

AHEAD = (10, 25, 50)


def signal(seeds: int, out: Path) -> Part:
    """Does a high CV mean that there is more to learn? Rank correlations over objectives and steps, seed by seed."""
    rows, lines = [], []
    for name in ("gdpo", "saw_gdpo"):
        found = learn(BASE, Rule(name), seeds)
        for ahead in AHEAD:
            gain = found.right[:, ahead:-1] - found.right[:, : -1 - ahead]
            steps = gain.shape[1]
            within = [
                bootstrap_mean(_spearman(found.cv[:, :steps, k], gain[:, :, k])) for k in range(len(BASE.objectives))
            ]
            across = bootstrap_mean(_spearman(found.cv[:, :steps].flatten(1), gain.flatten(1)))
            spread = bootstrap_mean(_spearman(found.cv[:, :steps].flatten(1), found.spread[:, :steps].flatten(1)))
            row: dict = {"method": name, "ahead": ahead, "seeds": len(gain)} | columns("both", across)
            for objective, interval in zip(BASE.objectives, within, strict=True):
                row |= columns(f"within_{objective.name}", interval)
            rows.append(row | columns("with_spread", spread))
            lines.append([name, str(ahead), *(show(value, 2) for value in (across, *within, spread))])
    header = ["trained with", "steps ahead", "CV and gain, both objectives", "within early", "within late"]
    header.append("CV and share of groups with spread")
    text = (
        "Spearman's rank correlation, over the steps of a run, between an objective's CV and the gain of its P(right) "
        "over the next steps; mean over seeds."
    )
    return Part(rows, markdown(header, lines, left=2), text)


def _spearman(first: Tensor, second: Tensor) -> np.ndarray:
    """One correlation per row."""
    return np.array([stats.spearmanr(a, b).statistic for a, b in zip(first.numpy(), second.numpy(), strict=True)])


PARTS: Mapping[str, tuple[str, Callable[[int, Path], Part]]] = {
    "speeds": ("Objectives that are learned at different speeds", speeds),
    "falsifier": ("The falsifier: objectives whose spread shrinks together", falsifier),
    "misleading": ("Where CV should mislead", misleading),
    "batch_size": ("How small can a batch be?", batch_size),
    "window": ("Statistics over the last steps, or an average of the weights?", window),
    "kl": ("The KL confound of the released code", kl),
    "signal": ("CV as a signal", signal),
    "methods": ("Every method in seven situations", methods),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300, help="policies of each method (300)")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="may be repeated")
    parser.add_argument("--out", type=Path, default=Path("results/study/tabular"))
    arguments = parser.parse_args(argv)
    if arguments.seeds < 2:
        parser.error(f"--seeds is {arguments.seeds}; expected at least 2, for an interval")
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # read before the first part is written: its files would make the checkout dirty
    source = f"seeds 0 to {arguments.seeds - 1} of stream 0; commit {commit()}; {machine('cpu')}; {versions('torch')}"
    for name in arguments.only or PARTS:
        title, study = PARTS[name]
        print(f"==> {title}", flush=True)
        part = study(arguments.seeds, arguments.out)
        write_csv(arguments.out / f"{name}.csv", part.rows)
        picture = f"\n\n![{title}]({name}.png)" if (arguments.out / f"{name}.png").exists() else ""
        text = f"# {title}\n\n{part.text}\n\n{part.table}{picture}\n\n"
        text += f"`bash scripts/study.sh tabular --only {name} --seeds {arguments.seeds}`; {source}.\n"
        (arguments.out / f"{name}.md").write_text(text)
        print(f"{part.table}\n    {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
