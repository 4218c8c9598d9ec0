"""A patch of vLLM 0.28.0 on a CPU: keeps linear weights as they were loaded.

vLLM packs them for its CPU kernels and discards the originals, so that the trainer's next weight update fails
(``'Parameter' object has no attribute 'weight_loader'``). vLLM calls :func:`register` in each of its processes
through the entry point ``vllm.general_plugins``. Contract: ``tests/contract/test_cpu_seams.py``.
"""

import os


def register() -> None:
    """Use torch's own linear, only under ``VERL_PLATFORM=cpu``."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu":
        return
    import torch
    from vllm.model_executor.layers import utils

    def keep_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]

    utils.dispatch_cpu_unquantized_gemm = keep_weights
