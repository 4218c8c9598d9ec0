"""A data set of your own: a parquet file in verl's schema.

    python examples/own_data.py runs/own/train.parquet

Then train with ``data.train_files=runs/own/train.parquet``. The reward function gets ``data_source``,
``reward_model.ground_truth`` and ``extra_info`` of each row.
"""

import sys
from pathlib import Path

from datasets import Dataset

ROWS = [
    {
        "data_source": "own",
        "prompt": [{"role": "user", "content": f"What is the weather in {city}?"}],
        "reward_model": {"style": "rule", "ground_truth": f'{{"name": "get_weather", "city": "{city}"}}'},
        "extra_info": {"index": index, "split": "train"},
    }
    for index, city in enumerate(["Paris", "Oslo", "Lima", "Cairo", "Tokyo", "Quito"] * 8)
]

if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".parquet"):
        sys.exit("expected the file to write: python examples/own_data.py runs/own/train.parquet")
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(ROWS).to_parquet(path)
