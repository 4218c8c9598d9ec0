"""Made-up posts with summaries, in the Hub's format: a column ``prompt`` and a column ``completion``.

python -m data_prep.toy_tldr --out runs/rehearsal/tldr/posts.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

PEOPLE = ("My brother", "My boss", "A friend", "My neighbour", "Our cat", "My sister")
DEEDS = ("ate my lunch", "lost my keys", "sold the car", "moved out", "broke a window", "won a prize")
PLACES = ("at work", "in Oslo", "at home", "on a train", "in the park", "at school")
FEELINGS = ("happy", "angry", "sad", "calm", "tired", "proud")
MOST = len(PEOPLE) * len(DEEDS) * len(PLACES) * len(FEELINGS)


def make_posts(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Different posts, at most :data:`MOST`."""
    rng = random.Random(seed)
    seen: set[tuple[str, ...]] = set()
    posts: list[dict[str, str]] = []
    while len(posts) < number:
        who, what, where, mood = choice = tuple(map(rng.choice, (PEOPLE, DEEDS, PLACES, FEELINGS)))
        if choice in seen:
            continue
        seen.add(choice)
        post = f"SUBREDDIT: r/toy\n\nPOST: {who} {what} {where}. I am {mood}. What now?\n\nTL;DR:"
        posts.append({"prompt": post, "completion": f"{who} {what} {where}."})
    return posts


def write_posts(path: Path, number: int, seed: int = 0) -> None:
    """Write posts, one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(post) + "\n" for post in make_posts(number, seed)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not 1 <= arguments.rows <= MOST:
        parser.error(f"--rows is {arguments.rows}; expected 1 to {MOST}, the number of different posts")
    write_posts(arguments.out, arguments.rows, arguments.seed)


if __name__ == "__main__":
    main()
