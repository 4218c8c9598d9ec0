"""The command line of the estimate; the package describes it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from saw import memory
from saw.machine.shape import shape_of
from saw.memory.fit import fits, memory_of_a_gpu, usable
from saw.memory.phases import estimate
from saw.memory.report import document, summary, table
from saw.runs.compose import checked_override, compose


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="saw memory", description=memory.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="1.5b", help="1.5b, 3b, or a folder or Hub name with a config.json (1.5b)")
    parser.add_argument("--gpus", type=int, default=4, help="number of GPUs, all nodes together (4)")
    parser.add_argument(
        "--gpu-memory", type=float, help="memory of one GPU in GB, as sold (this machine's; 80 without a GPU)"
    )
    parser.add_argument("--experiment", default="toolrl", help="in configs/experiment (toolrl)")
    parser.add_argument("--method", help="the method (the experiment's; saw_gdpo for the tables)")
    parser.add_argument(
        "--flash-attn",
        action=argparse.BooleanOptionalAction,
        help="whether flash-attn is installed where the training runs (if absent, this machine is checked)",
    )
    parser.add_argument("--document", action="store_true", help="print the tables of docs/memory.md")
    parser.add_argument("overrides", nargs="*", type=checked_override, metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args(argv)
    if arguments.document:
        print("\n\n".join(document()))
        return
    if arguments.gpu_memory is not None and arguments.gpu_memory <= 0:
        parser.error(f"--gpu-memory is {arguments.gpu_memory:g}; expected a number above 0")
    known = arguments.model if arguments.model in ("1.5b", "3b") else "1.5b"
    method = [f"saw.method={arguments.method}"] if arguments.method else []
    model = f"Qwen/Qwen2.5-{arguments.model}-Instruct" if arguments.model == known else arguments.model
    gpu_bytes = usable(arguments.gpu_memory) if arguments.gpu_memory else memory_of_a_gpu() or usable(80)
    try:
        config = compose(f"experiment={arguments.experiment}", *method, *arguments.overrides)
        found = estimate(config, shape_of(model), arguments.gpus, arguments.flash_attn)
    except ValueError as fault:
        parser.error(str(fault))
    size = f"{found.model.parameters / 1e9:.2f} billion parameters"
    print(f"{arguments.experiment}, {config.saw.method}, {size}, {arguments.gpus} GPUs")
    print(f"\n{table(found, gpu_bytes)}\n\n{summary(found, gpu_bytes)}")
    too_much = fits(found, gpu_bytes)
    for line in too_much:
        print(f"does not fit: {line}")
    raise SystemExit(1 if too_much else 0)


if __name__ == "__main__":
    main()
