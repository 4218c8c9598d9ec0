"""Table 2 from the posts to the table.

    export GEMINI_API_KEY=...
    bash scripts/reproduce_table2.sh [--method saw_gdpo] [--seeds 1,2,3]
    bash scripts/reproduce_table2.sh --dry-run       every command, what is missing, and what the judge would cost
    bash scripts/reproduce_table2.sh --rehearse      the same on a CPU with a toy model and a stand-in judge

Data, then for each method and seed training, merging to a Hugging Face folder and four evaluations, then the table.
Finished stages are skipped, others resume, and no verdict is paid for twice. KEY=VALUE are Hydra overrides of the
trainings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recipes.common import reproduce
from recipes.common.stages import Stage
from recipes.tldr.evaluate import judge_options
from recipes.tldr.stand_in_judge import FAULTS, StandIn, serving
from recipes.tldr.table import TABLE, Cell
from saw.rewards import JUDGE
from saw.rewards.judge import JudgeOptions
from saw.rewards.judge.options import JudgeError
from saw.runs.compose import CONFIGS, NotComposed, compose

#: For the cost estimate: tokens of a question besides the post (rubric and two summaries), of a reply, and of a post if
#: the data does not exist yet.
RUBRIC_TOKENS, REPLY_TOKENS, POST_TOKENS = 400, 30, 400
#: The stand-in judge of a rehearsal: the share of its answers that go wrong, and its port in a dry run's commands.
FAULTY, SHOWN_PORT = 0.1, 8901


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = reproduce.parser(__doc__, "tldr")
    parser.add_argument("--source", help="a local file of posts and summaries; the Hub's data set if absent")
    parser.add_argument("--judge", default="gemini", help="a file of configs/judge (gemini)")
    parser.add_argument("--second-judge", help="another judge for the evaluation, to measure how far the two agree")
    arguments = reproduce.parse(parser, argv)
    if arguments.rehearse:
        if arguments.source or arguments.second_judge or arguments.judge != "gemini":
            parser.error("--rehearse makes its own posts and judge; it takes no --source, --judge or --second-judge")
        arguments.judge = "server"
    for name in filter(None, (arguments.judge, arguments.second_judge)):
        allowed = sorted({path.stem for path in (CONFIGS / "judge").glob("*.yaml")} - {"base", "verl"})
        if name not in allowed:  # the evaluation asks the judge after verl has stopped
            parser.error(f"judge {name!r} cannot be used here; expected one of {', '.join(allowed)}")
    return arguments


def cells(arguments: argparse.Namespace) -> Iterator[tuple[Cell, int]]:
    """The selected rows of the table, with each seed."""
    for method in arguments.method:
        for seed in arguments.seeds:
            yield Cell(method, arguments.reading), seed


def plan(arguments: argparse.Namespace, environment: dict[str, str]) -> tuple[list[Stage], dict[str, list[Stage]]]:
    """The shared stages, and the stages of each training by the name of its folder.

    Args:
        arguments (argparse.Namespace): the command line.
        environment (dict[str, str]): the judge's address, in a rehearsal.
    """
    out: Path = arguments.out
    data = out / "data"
    source: tuple[str, ...] = ("--source", arguments.source) if arguments.source else ()
    overrides = [f"judge={arguments.judge}", *arguments.overrides]
    shared = []
    if arguments.rehearse:
        model, made, fitting = reproduce.rehearsal_model(arguments, "--task", "tldr")
        posts = ("-m", "data_prep.toy_tldr", "--out", str(out / "posts.jsonl"))
        shared = [Stage("toy_posts", out, posts), *made]
        few = ("--train-rows", "64", "--test-rows", "8", "--tokenizer", str(model))
        source = ("--source", str(out / "posts.jsonl"), *few)
        lengths = ("data.max_prompt_length=192", "actor_rollout_ref.rollout.max_model_len=240")
        overrides = ["size=toy", *lengths, *fitting, *overrides, f"actor_rollout_ref.model.path={model}"]
        overrides.append(f"{JUDGE}.cache={out / 'verdicts.sqlite'}")
    shared.append(Stage("data", data, ("-m", "data_prep.tldr", "--out", str(data), *source)))
    chains = {}
    for cell, seed in cells(arguments):
        folder = out / cell.folder(seed)
        experiment = ("experiment=tldr", f"saw.method={cell.method}")
        stages = reproduce.training(arguments, folder, experiment, seed, overrides, environment)
        chains[folder.name] = [*stages, evaluation(arguments, folder, environment)]
    return shared, chains


def evaluation(arguments: argparse.Namespace, folder: Path, environment: dict[str, str]) -> Stage:
    """The stage of the repeated evaluation: summaries of the held-out posts, judged."""
    data, second = folder.parent / "data" / "test.parquet", arguments.second_judge
    cache = f"{JUDGE}.cache={folder.parent / 'verdicts.sqlite'}"
    command = (
        *("-m", "recipes.tldr.evaluate", "--model", str(folder / "hf"), "--data", str(data)),
        *("--out", str(folder / "judged"), "--judge", arguments.judge, "--runs", str(arguments.evaluations)),
        *(("--second-judge", second) if second else ()),
        *("--gpus", str(0 if arguments.rehearse else arguments.gpus)),
        *(("--limit", "4", "--max-tokens", "24", "--overrides", cache) if arguments.rehearse else ()),
    )
    return Stage("evaluate", folder, command, 1.0 if arguments.rehearse else arguments.hours, environment)


def check(arguments: argparse.Namespace) -> list[str]:
    """What is missing for the plan; prints what the judge would cost."""
    missing = []
    if arguments.source and not Path(arguments.source).is_file():
        missing.append(f"--source {arguments.source}: there is no such file")
    missing += reproduce.check_machine(arguments, [("1.5b", cell.folder(seed)) for cell, seed in cells(arguments)])
    try:
        config = compose("experiment=tldr", *arguments.overrides)
    except NotComposed as fault:
        # A dry run ends with the doctor, which names it.
        return missing if arguments.dry_run else [*missing, str(fault)]
    for name in filter(None, (arguments.judge, arguments.second_judge)):
        if arguments.rehearse:
            continue
        try:
            options = judge_options(name, (), arguments.out / "faults.jsonl")
            if name == arguments.judge:
                print(cost(arguments, config, options))
            if name != arguments.judge or not arguments.dry_run:  # a dry run ends with the doctor, which names the key
                options.api_key()
        except (JudgeError, OmegaConfBaseException) as fault:  # the latter if a variable is not set
            missing.append(f"judge {name}: {fault}")
    return missing


def cost(arguments: argparse.Namespace, config: DictConfig, options: JudgeOptions) -> str:
    """A text with the judge's estimated cost, from the number of samples and the configured prices."""
    report = arguments.out / "data" / "report.json"
    data = json.loads(report.read_text()) if report.exists() else {}
    rows = {split: data.get(split, {}).get("rows", default) for split, default in (("train", 2560), ("test", 256))}
    post = data.get("train", {}).get("prompt_tokens", {}).get("median", POST_TOKENS)
    steps = rows["train"] // config.data.train_batch_size * config.trainer.total_epochs
    samples = steps * config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    validations = (steps // config.trainer.test_freq + 2) * rows["test"]
    requests = samples + validations + arguments.evaluations * rows["test"]
    tokens = requests * (RUBRIC_TOKENS + post), requests * REPLY_TOKENS
    dollars = (tokens[0] * options.input_price + tokens[1] * options.output_price) / 1e6
    trainings = len(list(cells(arguments)))
    return (
        f"judge {options.model}: per training about {requests:,} requests, {tokens[0] / 1e6:.0f} million tokens in and "
        f"{tokens[1] / 1e6:.1f} out, ${dollars:.0f} at the prices of configs/judge; {trainings} trainings: "
        f"${dollars * trainings:.0f} (repeated questions cost nothing)"
    )


def main() -> None:
    """Command line."""
    arguments = parse()
    missing = check(arguments)
    reproduce.stop_if_missing(arguments, missing)
    with ExitStack() as stack:
        environment = {}
        if arguments.rehearse and arguments.dry_run:
            environment = {"JUDGE_URL": f"http://127.0.0.1:{SHOWN_PORT}/v1"}
        elif arguments.rehearse:
            stand_in = StandIn(latency=0.02, faults=dict.fromkeys(FAULTS, FAULTY / len(FAULTS)))
            environment = {"JUDGE_URL": stack.enter_context(serving(stand_in))}
        shared, chains = plan(arguments, environment)
        if arguments.rehearse and arguments.dry_run:  # otherwise it is served from this process
            server = ("-m", "recipes.tldr.stand_in_judge", "--port", str(SHOWN_PORT), "--faults", str(FAULTY))
            shared = [Stage("the stand-in judge, in another shell", arguments.out, server), *shared]
        reproduce.run_or_show(arguments, missing, (shared, chains), cells(arguments), TABLE.write)


if __name__ == "__main__":
    reproduce.run_main(main)
