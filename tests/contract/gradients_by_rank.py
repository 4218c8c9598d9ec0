"""One rank of verl's actor, started by ``tests/contract/ranks.py``: writes its results as JSON.

python -m tests.contract.ranks RANKS gradients_by_rank MODEL_FOLDER ROWS_FILE CASES_FILE RESULTS_FOLDER

On a CPU, unless VERL_PLATFORM is set. vLLM is not needed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.contract.worker import TrainingWorker, batch_of, make_worker

# isort: split
from verl.utils import tensordict_utils as tu

from saw.verl import gradients


def worker_of(
    path: str,
    micro_batch: int,
    checkpointing: bool,
    *,
    attention: str = "sdpa",
    remove_padding: bool = False,
    precision: str = "fp32",
) -> TrainingWorker:
    """verl's worker as the pipeline builds it; by default as on a CPU."""
    model: dict[str, Any] = {
        "use_remove_padding": remove_padding,
        "enable_gradient_checkpointing": checkpointing,
        "override_config": {"attn_implementation": attention},
    }
    engine: dict[str, Any] = {
        "model_dtype": "fp32",
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision],
        "mixed_precision": {"param_dtype": precision, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        "use_dynamic_bsz": False,
    }
    return make_worker(path, micro_batch, model=model, engine=engine)


def find(worker: TrainingWorker, rows: list[dict], layers: list[int], reduction: str) -> dict:
    """The worker's results for this rank's rows."""
    mine = batch_of(rows[worker.rank :: worker.world_size])
    tu.assign_non_tensor(mine, **{gradients.LAYERS: tuple(layers)})
    plain = worker.infer_batch(mine.copy())
    output, found = gradients.log_probs_and_gradients(
        worker, mine, gradients.ObjectiveLosses("token-mean", reduction=reduction)
    )
    device = output["log_probs"].device.type
    drift = (output["log_probs"].cpu().values() - plain["log_probs"].values()).abs().max().item()
    left = [name for name, parameter in worker.engine.module.named_parameters() if parameter.grad is not None]
    return {"gram": found.gram.tolist(), "drift": drift, "left": left, "device": device}


def main() -> None:
    """Run the cases."""
    model, rows_file, cases_file, results = sys.argv[1:]
    rows, cases = json.loads(Path(rows_file).read_text()), json.loads(Path(cases_file).read_text())
    for case in cases:
        worker = worker_of(model, case["micro_batch"], case["checkpointing"], **case.get("engine", {}))
        case["found"] = find(worker, rows, case["layers"], case["reduction"])
    Path(results, f"rank{worker.rank}.json").write_text(json.dumps(cases))
