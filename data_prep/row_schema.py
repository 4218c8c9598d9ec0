"""verl's row schema, as ToolRL uses it."""

from __future__ import annotations

from typing import Any


def make_row(instruction: str, question: str, output: str, index: int, split: str) -> dict[str, Any]:
    """One row of ToolRL's RL split in verl's schema."""
    return {
        "data_source": "rlla",
        "prompt": [{"role": "system", "content": instruction}, {"role": "user", "content": question}],
        "ability": "math",  # as in the original, whatever the task
        "reward_model": {"ground_truth": output, "style": "rule"},
        "extra_info": {
            "index": index,
            "input": question,
            "instruction": instruction,
            "output": output,
            "split": split,
        },
    }
