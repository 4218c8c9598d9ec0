"""One rank of verl's actor, started by ``tests/contract/ranks.py``: counts the bytes it holds, as JSON.

python -m tests.contract.ranks RANKS memory_by_rank MODEL_FOLDER CASES_FILE RESULTS_FOLDER
"""

import json
import sys
from pathlib import Path

from tests.contract.worker import TrainingWorker, batch_of, make_worker

# isort: split
import torch
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu

ROW = {"prompt": [5, 6, 7], "response": [8, 9, 10, 11], "advantages": [1.0, -1.0]}


def worker_of(path: str, model_dtype: str) -> TrainingWorker:
    """verl's worker with its default mixed precision, that of a GPU."""
    model = {
        "use_remove_padding": False,
        "enable_gradient_checkpointing": True,
        "override_config": {"attn_implementation": "sdpa"},
    }
    return make_worker(path, 1, model=model, engine={"model_dtype": model_dtype, "use_dynamic_bsz": False})


def held(tensors) -> int:
    """Bytes on this rank."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if torch.is_tensor(t)]
    return sum(t.nbytes for t in local if t.dim())  # Adam's step counts are numbers


def backward(worker: TrainingWorker, synchronise: bool) -> None:
    """One micro-batch; without synchronising, as verl does before the last one if it defers the reduction."""
    data = batch_of([ROW])
    tu.assign_non_tensor(data, use_remove_padding=False, use_dynamic_bsz=False, micro_batch_size_per_gpu=1)
    module = worker.engine.module
    module.set_requires_gradient_sync(synchronise)
    with worker.engine.train_mode():
        worker.engine.forward_backward_batch(
            data, lambda model_output, data, dp_group: (model_output["log_probs"].values().sum(), {})
        )
        if synchronise:
            return count(worker)
        groups = [state._fsdp_param_group for state in map(fully_shard_state, module.modules()) if state is not None]
        unreduced = [p.unsharded_accumulated_grad for group in groups for p in group.fsdp_params]
        return {"unreduced": held(unreduced)}


def fully_shard_state(module):
    get = getattr(module, "_get_fsdp_state", None)
    return get() if get else None


def count(worker: TrainingWorker) -> dict[str, int]:
    """Bytes of weights, gradients, and Adam's state after a step."""
    parameters = list(worker.engine.module.parameters())
    found = {"weights": held(parameters), "gradients": held([p.grad for p in parameters])}
    worker.engine.optimizer_step()
    states = worker.engine.optimizer.state.values()
    return found | {"Adam": held([value for state in states for value in state.values()])}


def main() -> None:
    """Run the cases."""
    model, cases_file, results = sys.argv[1:]
    cases = json.loads(Path(cases_file).read_text())
    for case in cases:
        worker = worker_of(model, case["model_dtype"])
        case["found"] = backward(worker, synchronise=True)
        case["found"] |= backward(worker_of(model, case["model_dtype"]), synchronise=False)
    Path(results, f"rank{worker.rank}.json").write_text(json.dumps(cases))
