"""Estimates the GPU memory of a training before anything starts.

    saw memory --model 1.5b --gpus 4 --gpu-memory 80
    saw memory --model 3b --gpus 4 --gpu-memory 40 --method gradient_gdpo --no-flash-attn
    saw memory --document         the tables of docs/memory.md

For verl 0.9.1's synchronous trainer with FSDP2 and vLLM on the same GPUs. The phases of a step run one after another,
so the largest is the peak. docs/memory.md explains each formula. KEY=VALUE are Hydra overrides.
"""

from saw.machine.shape import SHAPES, Shape, shape_of
from saw.memory.fit import fits, largest_tokens, memory_of_a_gpu, usable
from saw.memory.phases import Estimate, Phase, estimate
from saw.memory.report import check, summary, table
from saw.memory.settings import Settings, read_settings

__all__ = [
    "SHAPES",
    "Estimate",
    "Phase",
    "Settings",
    "Shape",
    "check",
    "estimate",
    "fits",
    "largest_tokens",
    "memory_of_a_gpu",
    "read_settings",
    "shape_of",
    "summary",
    "table",
    "usable",
]
