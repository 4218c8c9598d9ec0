"""The quickstart: makes data and a model, trains GRPO and SAW-GDPO in the real pipeline, draws their curves.

    bash scripts/quickstart.sh [--data FILE.parquet] [--model PATH] [--method NAME ...] [--steps N] [KEY=VALUE ...]
    bash scripts/quickstart.sh --model smollm2     with SmolLM2-135M-Instruct, which is downloaded

Everything is written to runs/quickstart. Finished stages are skipped; --fresh trains again. KEY=VALUE are Hydra
overrides of configs/experiment/quickstart.yaml.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from recipes.common import smollm2
from recipes.common.reproduce import refuse_own, run_main
from recipes.common.stages import HOUR, Stage, run_all
from recipes.common.toys import curves, toy_model, toy_rows
from saw.method.registry import METHODS
from saw.records.provenance import commit, machine, versions
from saw.runs.compose import checked_override

DEFAULT_METHODS = ("grpo", "saw_gdpo")
DEFAULT_STEPS = 16
#: Time limits in seconds for the start-up and per step; a run that takes longer is considered hung.
START_LIMIT, STEP_LIMIT = 600, 300

#: Setting of the quickstart -> the option to use instead of an override.
OWN = {
    "experiment": "bash scripts/sweep.sh --experiment",
    "saw.method": "--method",
    "trainer.total_training_steps": "--steps",
    "trainer.default_local_dir": "--out",
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line and check it before anything is started."""
    parser = argparse.ArgumentParser(
        prog="saw quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="training rows in verl's schema (parquet); toy data if absent")
    parser.add_argument(
        "--model",
        type=Path,
        help=f"a Hugging Face model folder, or {smollm2.NAME}, which is downloaded; a toy model if absent",
    )
    parser.add_argument(
        "--method",
        action="append",
        choices=list(METHODS),
        help=f"may be repeated; {', '.join(DEFAULT_METHODS)} if absent",
    )
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help=f"training steps ({DEFAULT_STEPS})")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("SAW_RUNS", "runs")) / "quickstart")
    parser.add_argument("--fresh", action="store_true", help="repeat finished trainings")
    parser.add_argument("overrides", nargs="*", type=checked_override, metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args(argv)
    refuse_own(parser, arguments.overrides, OWN)
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}; expected a number that is at least 1")
    if arguments.data and not arguments.data.is_file():
        parser.error(f"--data {arguments.data}: there is no such file")
    arguments.smollm2 = arguments.model == Path(smollm2.NAME)
    if arguments.smollm2:
        arguments.model = smollm2.default_folder()
        if arguments.data and not smollm2.is_complete(arguments.model):
            parser.error("--data needs the model's tokenizer: first run python -m recipes.common.smollm2")
    elif arguments.model and not (arguments.model / "config.json").is_file():
        parser.error(
            f"--model {arguments.model}: expected a Hugging Face model folder with a config.json, or {smollm2.NAME}"
        )
    arguments.method = list(dict.fromkeys(arguments.method or DEFAULT_METHODS))
    arguments.out = arguments.out.resolve()
    return arguments


def fit_lengths(data: Path, model: Path) -> list[str]:
    """Overrides for the lengths that the prompts and answers of a user's own data need.

    Longer prompts than the maximum are left out, so it is set to what the data needs, within the model's context.

    Raises:
        SystemExit: if no row fits into the model's context.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = pq.read_table(data, columns=["prompt", "reward_model"]).to_pylist()
    prompts = sorted(
        len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)) for row in rows
    )
    answers = max(len(tokenizer.encode(row["reward_model"]["ground_truth"])) for row in rows)
    context = AutoConfig.from_pretrained(model).max_position_embeddings
    response = min(_up(answers + 16), 1024, context // 2)
    prompt = min(_up(prompts[-1]), context - response)
    kept = sum(length <= prompt for length in prompts)
    print(f"{data}: {len(prompts)} rows; prompts of {prompts[0]} to {prompts[-1]} tokens, {kept} within {prompt}")
    if kept == 0:
        raise SystemExit(f"no prompt in {data} fits the model's context of {context} tokens")
    batch = min(32, kept)
    return [
        f"data.max_prompt_length={prompt}",
        f"data.max_response_length={response}",
        f"actor_rollout_ref.rollout.max_model_len={prompt + response}",
        f"actor_rollout_ref.rollout.max_num_batched_tokens={max(4096, prompt + response)}",
        f"data.train_batch_size={batch}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={batch}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    ]


def _up(length: int, multiple: int = 64) -> int:
    return -(-length // multiple) * multiple


def plan(arguments: argparse.Namespace) -> tuple[list[Stage], dict[str, list[Stage]]]:
    """The stages that make data and model, and one training per method.

    A training's folder is named after a checksum of its settings, so other settings get other folders.
    """
    out, shared = arguments.out, []
    model, train_file, test_file = out / "model", out / "data" / "train.parquet", out / "data" / "test.parquet"
    if arguments.model:
        model = arguments.model.resolve()
        shared += smollm2.stages(model) if arguments.smollm2 else []
    else:
        shared += toy_model(model)
    if arguments.data:
        train_file = test_file = arguments.data.resolve()
    else:
        shared += toy_rows(out / "data")
    overrides = [
        *(f"data.train_files={train_file}", f"data.val_files={test_file}", f"actor_rollout_ref.model.path={model}"),
        *(fit_lengths(train_file, model) if arguments.data else ()),
        *(smollm2.QUICKSTART if arguments.smollm2 and not arguments.data else ()),
        *arguments.overrides,
    ]
    settings = hashlib.sha256(json.dumps([overrides, arguments.steps]).encode()).hexdigest()[:8]
    chains = {}
    for method in arguments.method:
        folder = out / f"{method}-{settings}"
        command = (
            *("-m", "saw.runs.train", "experiment=quickstart", f"saw.method={method}"),
            *(f"trainer.total_training_steps={arguments.steps}", f"trainer.default_local_dir={folder}"),
            *overrides,
        )
        hours = (START_LIMIT + STEP_LIMIT * arguments.steps) / HOUR
        chains[method] = [Stage("train", folder, command, hours, trains=True)]
    return shared, chains


def report(out: Path, chains: Mapping[str, Sequence[Stage]], seconds: float) -> None:
    """Print the table of the finished trainings, draw the picture, and save both with their provenance."""
    finished = {method: stage for method, (stage,) in chains.items() if stage.is_done()}
    if not finished:
        return
    table = curves(finished, out / "curves.png", title="Mean reward, CV and weight of each objective")
    provenance = (
        f"bash scripts/quickstart.sh {shlex.join(sys.argv[1:])}".strip()
        + f"\ncommit {commit()}; data seed 0, model seed 0, trainer seed 1; one run per method"
        + f"\n{machine()}; {versions('verl', 'vllm', 'torch', 'ray', 'transformers')}"
    )
    (out / "summary.md").write_text(f"{table}\n\n```\n{provenance}\n```\n")
    print(f"\n{table}\n\n{provenance}")
    print(f"picture: {os.path.relpath(out / 'curves.png')}")
    peak = max(stage.outcome()["peak_bytes"] for stage in finished.values()) / 2**30
    print(f"peak memory of a run: {peak:.1f} GiB;  total time: {seconds / 60:.1f} min, without set-up")
    for method, stage in finished.items():
        for fault in stage.job.faults()[:5]:
            print(f"warning: {method} logged: {fault[:200]}")


def main() -> None:
    """Command line."""
    started = time.monotonic()
    arguments = parse()
    shared, chains = plan(arguments)
    if arguments.fresh:
        for (stage,) in chains.values():
            stage.forget()
    run_all(shared, chains, lambda: report(arguments.out, chains, time.monotonic() - started))


if __name__ == "__main__":
    run_main(main)
