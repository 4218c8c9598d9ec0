"""Short answers for SmolLM2-135M-Instruct: one sentence about a word, of a given length, with rule-based rewards.

    python -m recipes.study.short_answers --out runs/smollm2/data

Chosen among several tasks, because the untrained model half masters it (results/smollm2): none of its rewards is
always given, none never, and the answers to one question differ.
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
LENGTHS = (6, 8, 10, 12)
#: Objective -> its smallest and largest value.
RANGES = {"word": (0.0, 1.0), "form": (0.0, 1.0), "length": (0.0, 1.0)}
TEST_ROWS = len(TEST_WORDS) * len(LENGTHS)


def make_rows(words: tuple[str, ...], split: str, seed: int = 0) -> list[dict[str, Any]]:
    """One row in verl's schema for each word and length, shuffled."""
    pairs = [(word, length) for word in words for length in LENGTHS]
    random.Random(seed).shuffle(pairs)
    return [
        {
            "data_source": "short_answers",
            "prompt": [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": f"Write one sentence of {length} words with the word {word}."},
            ],
            "reward_model": {"style": "rule", "ground_truth": f"{length} {word}"},
            "extra_info": {"index": index, "split": split},
        }
        for index, (word, length) in enumerate(pairs)
    ]


@returns(*RANGES, bounds=lambda step: RANGES)
def score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Score one answer.

    Args:
        data_source (str): not used.
        solution_str (str): the answer.
        ground_truth (str): number of words, and the word, as in ``"8 river"``.
        extra_info (Mapping | None): not used.

    Returns:
        dict[str, float]: ``word``, 1 if the answer has the word or its plural; ``form``, 1 if it is one sentence, from
        a capital to a full stop; ``length``, 1 for the number of words asked for, less for each word too many or too
        few, 0 for none or twice as many; and their sum, ``score``.
    """
    number, word = ground_truth.split()
    answer, wanted = solution_str.strip(), int(number)
    rewards = {
        "word": float(bool(re.search(rf"\b{word}(s|es)?\b", answer, re.IGNORECASE))),
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
    for split, words in (("train", TRAIN_WORDS), ("test", TEST_WORDS)):
        Dataset.from_list(make_rows(words, split)).to_parquet(arguments.out / f"{split}.parquet")


if __name__ == "__main__":
    main()
