"""SAW in TRL, on a CPU: the quickstart's small tool-calling task, with the quickstart's model, within two minutes.

    bash scripts/setup.sh --dev                                              # once: installs TRL
    bash scripts/run.sh python examples/trl_cpu.py                           # saw_gdpo
    bash scripts/run.sh python examples/trl_cpu.py --method grpo --steps 8
    bash scripts/report.sh runs/trl

With your own model and data, the same three things make TRL's script one with SAW: the trainer's class, ``method`` and
``objectives``.
"""

import argparse
import os
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

import saw
from data_prep.toy_toolrl import make_rows
from recipes.quickstart.toy_model import make_toy_model
from saw.rewards.toolrl import correctness_reward, format_reward
from saw.trl import SawGRPOTrainer


def correctness(completions, ground_truth, **_):
    """ToolRL's correctness reward, from -3 to 3; None where no tool is wanted, so nothing can be correct."""
    pairs = zip(completions, ground_truth, strict=True)
    return [
        correctness_reward(completion[0]["content"], truth) if "<tool_call>" in truth else None
        for completion, truth in pairs
    ]


def format(completions, ground_truth, **_):
    """ToolRL's format reward, 1 or 0."""
    return [
        format_reward(completion[0]["content"], truth)
        for completion, truth in zip(completions, ground_truth, strict=True)
    ]


OBJECTIVES = [saw.Objective("correctness", minimum=-3, maximum=3), saw.Objective("format", minimum=0, maximum=1)]


def main() -> None:
    """Make the model if there is none, and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="saw_gdpo", help="any that needs no gradients (docs/papers.md)")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("SAW_RUNS", "runs")) / "trl")
    arguments = parser.parse_args()
    model = arguments.out / "model"
    if not (model / "config.json").exists():
        make_toy_model(model)
    rows = make_rows(512, "train", seed=0)
    trainer = SawGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=[correctness, format],
        train_dataset=Dataset.from_list(
            [{"prompt": row["prompt"], "ground_truth": row["reward_model"]["ground_truth"]} for row in rows]
        ),
        args=GRPOConfig(
            output_dir=str(arguments.out / f"{arguments.method}_seed{arguments.seed}"),
            max_steps=arguments.steps,
            per_device_train_batch_size=64,  # one generation batch per step: 16 prompts, 4 samples each
            num_generations=4,
            max_completion_length=48,
            learning_rate=6e-4,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=arguments.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        method=arguments.method,
        objectives=OBJECTIVES,
    )
    trainer.train()
    first, last = ([log for log in trainer.state.log_history if "saw/format/mean" in log][place] for place in (0, -1))
    for name in ("correctness", "format"):
        means, weights = ([log[f"saw/{name}/{what}"] for log in (first, last)] for what in ("mean", "weight"))
        print(f"{name}: mean {means[0]:.2f} to {means[1]:.2f}, weight {weights[0]:.2f} to {weights[1]:.2f}")


if __name__ == "__main__":
    main()
