"""The quickstart: data, model, GRPO and SAW-GDPO through the real pipeline, a table and a picture.

    bash scripts/quickstart.sh [--data FILE.parquet] [--model PATH] [--method NAME ...] [--steps N] [KEY=VALUE ...]

Everything goes below runs/quickstart. What stands there is reused; --fresh begins anew. KEY=VALUE are Hydra overrides
of configs/experiment/quickstart.yaml.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from data_prep.toy_toolrl import write_splits
from recipes.quickstart.toy_model import make_toy_model
from saw.method.registry import METHODS
from saw.records.provenance import commit, machine, versions
from saw.report import plot_curves, read_history, step_line, summary_table
from saw.runs.process_tree import Run, RunFailed

DEFAULT_METHODS = ("grpo", "saw_gdpo")
DEFAULT_STEPS = 16
#: Seconds for start-up, and for a step; a run that takes longer hangs.
START_LIMIT, STEP_LIMIT = 600, 300


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Announce a part of the work, and say how long it took."""
    print(f"==> {title}", flush=True)
    started = time.monotonic()
    yield
    print(f"    {time.monotonic() - started:.0f} s", flush=True)


def prepare_data(folder: Path) -> tuple[Path, Path]:
    """Make the toy data, or take what stands."""
    train, test = folder / "train.parquet", folder / "test.parquet"
    with stage("data: 512 made-up tool-calling rows in ToolRL's format"):
        if not (train.exists() and test.exists()):
            write_splits(folder)
    return train, test


def prepare_model(folder: Path) -> Path:
    """Make and warm up the toy model, or take what stands; a half-made one does not stand."""
    with stage("model: a small Qwen2 and its tokenizer, 300 supervised steps on spoilt answers"):
        if not folder.exists():
            unfinished = folder.with_name(folder.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make_toy_model(unfinished)
            unfinished.rename(folder)
    return folder


def fit_lengths(data: Path, model: Path) -> list[str]:
    """Overrides that make room for the prompts and answers of a user's own data.

    Prompts are padded to their maximum on a CPU, so it is set to what the data needs, within what the model has.

    Raises:
        SystemExit: if the model has no room for any row.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Dataset.from_parquet(str(data))
    prompts = sorted(
        len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)) for row in rows
    )
    answers = max(len(tokenizer.encode(row["reward_model"]["ground_truth"])) for row in rows)
    context = AutoConfig.from_pretrained(model).max_position_embeddings
    response = min(_up(answers + 16), 1024, context // 2)
    prompt = min(_up(prompts[-1]), context - response)
    kept = sum(length <= prompt for length in prompts)
    print(f"    {len(prompts)} rows; prompts of {prompts[0]} to {prompts[-1]} tokens, {kept} within {prompt}")
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


def train(method: str, steps: int, overrides: list[str], folder: Path, fresh: bool) -> Run:
    """Train with one method, or take a finished run of the same command."""
    command = [
        *(sys.executable, "-m", "saw.runs.train", "experiment=quickstart"),
        *(f"saw.method={method}", f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={folder}"),
        *overrides,
    ]
    run = Run(command, folder, time_limit=START_LIMIT + STEP_LIMIT * steps)
    finished = folder / "finished.json"
    with stage(f"training: {method}, {steps} steps (log: {_short(run.log)})"):
        if finished.exists() and not fresh and json.loads(finished.read_text())["command"] == command[1:]:
            run.peak_bytes = json.loads(finished.read_text())["peak_bytes"]
            print("    stands from before")
            return run
        finished.unlink(missing_ok=True)
        with tqdm(total=steps, desc=f"    {method}", unit="step", leave=False, disable=None) as bar:
            bar.set_postfix_str("starting Ray, vLLM and the workers")

            def on_step(step: int, metrics: dict[str, Any]) -> None:
                bar.write("    " + step_line(step, metrics))
                bar.set_postfix_str("")
                bar.update(1)

            run.follow(on_step)
        finished.write_text(json.dumps({"command": command[1:], "peak_bytes": run.peak_bytes}))
    return run


def _short(path: Path) -> str:
    return os.path.relpath(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="training rows in verl's schema (parquet); toy data if absent")
    parser.add_argument("--model", type=Path, help="a Hugging Face model folder; a toy model if absent")
    parser.add_argument(
        "--method",
        action="append",
        choices=list(METHODS),
        help=f"may be repeated; {', '.join(DEFAULT_METHODS)} if absent",
    )
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help=f"training steps ({DEFAULT_STEPS})")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("SAW_RUNS", "runs")) / "quickstart")
    parser.add_argument("--fresh", action="store_true", help="train again where a finished run stands")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args()
    _check(parser, arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bar()
    transformers_logging.disable_progress_bar()

    started = time.monotonic()
    out = arguments.out.resolve()
    methods = list(dict.fromkeys(arguments.method or DEFAULT_METHODS))
    model = arguments.model.resolve() if arguments.model else prepare_model(out / "model")
    fitted = []
    if arguments.data:
        train_file = test_file = arguments.data.resolve()
        with stage(f"data: {arguments.data}"):
            fitted = fit_lengths(train_file, model)
    else:
        train_file, test_file = prepare_data(out / "data")
    overrides = [
        *(f"data.train_files={train_file}", f"data.val_files={test_file}", f"actor_rollout_ref.model.path={model}"),
        *fitted,
        *arguments.overrides,
    ]
    runs = {}
    for method in methods:
        folder = out / "-".join([method, _fingerprint(overrides, arguments.steps)])
        runs[method] = train(method, arguments.steps, overrides, folder, arguments.fresh)
    report(runs, out, time.monotonic() - started)


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Find what cannot work before anything is made."""
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}; expected a number that is at least 1")
    if arguments.data and not arguments.data.is_file():
        parser.error(f"--data {arguments.data}: there is no such file")
    if arguments.model and not (arguments.model / "config.json").is_file():
        parser.error(f"--model {arguments.model}: expected a Hugging Face model folder with a config.json")
    for override in arguments.overrides:
        if "=" not in override:
            parser.error(f"{override!r} is no Hydra override; expected KEY=VALUE")


def _fingerprint(overrides: list[str], steps: int) -> str:
    """Short name of a setting, so that runs with other settings stand beside each other."""
    return hashlib.sha256(json.dumps([overrides, steps]).encode()).hexdigest()[:8]


def report(runs: dict[str, Run], out: Path, seconds: float) -> None:
    """Print the table, draw the picture, and write both down with where they come from."""
    histories = {method: read_history(run.metrics) for method, run in runs.items()}
    picture = out / "curves.png"
    plot_curves(histories, picture, title="Mean reward, CV and weight of each objective")
    peak = max(run.peak_bytes for run in runs.values()) / 2**30
    table = summary_table(histories)
    provenance = (
        f"bash scripts/quickstart.sh {shlex.join(sys.argv[1:])}".strip()
        + f"\ncommit {commit()}; data seed 0, model seed 0, trainer seed 1; one run a method"
        + f"\n{machine()}; {versions('verl', 'vllm', 'torch', 'ray', 'transformers')}"
    )
    (out / "summary.md").write_text(f"{table}\n\n```\n{provenance}\n```\n")
    print(f"\n{table}\n\n{provenance}")
    print(f"picture: {_short(picture)}")
    print(f"peak memory of a run: {peak:.1f} GiB;  all of it took {seconds / 60:.1f} min, set-up not counted")
    for method, run in runs.items():
        for fault in run.faults()[:5]:
            print(f"warning: {method} logged: {fault[:200]}")


if __name__ == "__main__":
    try:
        main()
    except RunFailed as failure:
        raise SystemExit(f"\nthe training failed: {failure}") from None
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; everything that was started has been stopped") from None
