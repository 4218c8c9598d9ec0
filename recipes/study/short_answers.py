"""Short answers for SmolLM2-135M-Instruct: one sentence with two given words, of a given length; rule-based rewards.

    python -m recipes.study.short_answers --out runs/smollm2/data

The task was chosen among several, because the untrained model half masters it (results/smollm2): each reward is given
now and then, and the answers to one question differ.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from saw.rewards import returns

#: Words of the questions; the held-out questions have words of their own.
TRAIN_WORDS = (
    *("dog", "river", "bread", "moon", "train", "garden", "winter", "music", "clock", "bird", "ship", "forest"),
    *("coffee", "school", "mountain", "letter", "horse", "window", "rain", "bridge", "doctor", "apple", "island"),
    *("candle", "market", "teacher", "snow", "guitar", "road", "fire", "cat", "kitchen", "farmer", "sea", "book"),
    *("star", "chair", "wolf", "summer", "boat", "flower", "king", "tree", "lamp", "village", "cloud", "baker", "egg"),
)
TEST_WORDS = (
    *("fish", "door", "lake", "piano", "cake", "desert", "nurse", "bicycle", "storm", "rabbit", "castle", "spoon"),
    *("painter", "valley", "mirror", "bee"),
)
LENGTHS = (8, 10, 12)
TRAIN_ROWS, TEST_ROWS = 480, 48
#: Objective -> its smallest and largest value.
RANGES = {"words": (0.0, 1.0), "form": (0.0, 1.0), "length": (0.0, 1.0)}


def make_rows(words: tuple[str, ...], number: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Rows in verl's schema, each with two words and a length drawn at random."""
    chance = random.Random(seed)
    rows = []
    for index in range(number):
        first, second = chance.sample(words, 2)
        length = chance.choice(LENGTHS)
        question = f"Write one sentence of {length} words with the words {first} and {second}."
        rows.append(
            {
                "data_source": "short_answers",
                "prompt": [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": question}],
                "reward_model": {"style": "rule", "ground_truth": f"{length} {first} {second}"},
                "extra_info": {"index": index, "split": split},
            }
        )
    return rows


@returns(*RANGES, bounds=lambda step: RANGES)
def score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Score one answer.

    Args:
        data_source (str): not used.
        solution_str (str): the answer.
        ground_truth (str): number of words, and the two words, as in ``"8 river train"``.
        extra_info (Mapping | None): not used.

    Returns:
        dict[str, float]: ``words``, 1 if the answer has both words or their plurals; ``form``, 1 if it is one sentence,
        from a capital to a full stop; ``length``, 1 for the number of words asked for, less for each word too many or
        too few, 0 for none or twice as many; and their sum, ``score``.
    """
    number, *words = ground_truth.split()
    answer, wanted = solution_str.strip(), int(number)
    has = [re.search(rf"\b{word}(s|es)?\b", answer, re.IGNORECASE) for word in words]
    rewards = {
        "words": float(all(has)),
        "form": float(bool(re.fullmatch(r"[A-Z][^.!?\n]*\.", answer))),
        "length": max(0.0, 1 - abs(len(answer.split()) - wanted) / wanted),
    }
    return {**rewards, "score": sum(rewards.values())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for train.parquet and test.parquet")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = {"train": (TRAIN_WORDS, TRAIN_ROWS), "test": (TEST_WORDS, TEST_ROWS)}
    for seed, (split, (words, number)) in enumerate(splits.items()):
        Dataset.from_list(make_rows(words, number, split, seed)).to_parquet(arguments.out / f"{split}.parquet")


if __name__ == "__main__":
    main()
