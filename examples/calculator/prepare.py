"""Questions for the calculator, and a toy model that can call it: what a rehearsal on a CPU needs.

    python -m examples.calculator.prepare runs/calculator

The model has 0.25 million parameters and has seen flawed dialogues: some ask for what the calculator can't compute,
some answer without it, some answers are not plain numbers. For a model of your own only the questions are needed: set
``actor_rollout_ref.model.path``, and ``data.max_prompt_length`` to its longest prompt.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from recipes.quickstart.toy_model import Example, make_model, train_tokenizer, warm_up

#: The line break makes it one token of the toy tokenizer, as it is the same in all questions.
SYSTEM = (
    "Call the calculator, then answer with its result alone. A call is "
    '<tool_call> {"name": "calculate", "arguments": {"expression": "1 + 2"}} </tool_call>\n'
)


def question(first: int, second: int) -> list[dict[str, str]]:
    """The prompt as messages."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{first} + {second} ?"}]


def call(expression: str) -> str:
    """The first turn of a good dialogue."""
    arguments = json.dumps({"name": "calculate", "arguments": {"expression": expression}})
    return f"<tool_call>\n{arguments}\n</tool_call>"


def rows(number: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Rows in verl's schema."""
    chance = random.Random(seed)
    pairs = [(chance.randint(0, 9), chance.randint(0, 9)) for _ in range(number)]
    return [
        {
            "data_source": "calculator",
            "prompt": question(first, second),
            "reward_model": {"style": "rule", "ground_truth": str(first + second)},
            "extra_info": {"index": index, "split": split},
        }
        for index, (first, second) in enumerate(pairs)
    ]


def dialogues(number: int, seed: int) -> list[Example]:
    """For each question both turns, as a chat and what the model says next."""
    chance = random.Random(seed)
    examples: list[Example] = []
    for _ in range(number):
        first, second = chance.randint(0, 9), chance.randint(0, 9)
        asked, calls = question(first, second), call(f"{first} + {second}")
        told = [{"role": "assistant", "content": calls}, {"role": "tool", "content": str(first + second)}]
        examples += [(asked, calls), ([*asked, *told], str(first + second))]
    return examples


def spoil(answer: str, chance: random.Random) -> str:
    """Spoil half of the first turns and half of the second ones."""
    if chance.random() < 1 / 2:
        return answer
    if "<tool_call>" not in answer:
        return f"It is {answer}."
    return chance.choice([answer.replace(" + ", " plus "), str(chance.randint(0, 18))])


def write_model(folder: Path, steps: int = 200, seed: int = 0) -> None:
    """Train the toy model and its tokenizer, and save them."""
    torch.manual_seed(seed)
    examples = dialogues(512, seed)
    tokenizer = train_tokenizer(examples)
    model = make_model(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    warm_up(model, tokenizer, examples, spoil, steps=steps, batch_size=16, seed=seed)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def write_data(folder: Path) -> None:
    """Write ``train.parquet`` and ``test.parquet``."""
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows(256, "train", seed=0)).to_parquet(folder / "train.parquet")
    Dataset.from_list(rows(32, "test", seed=1)).to_parquet(folder / "test.parquet")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_data(target)
    write_model(target / "model")
