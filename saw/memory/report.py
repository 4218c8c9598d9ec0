"""Shows the estimate: tables, a line for a dry run, and the tables of docs/memory.md."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from saw.machine.accelerator import cluster_address
from saw.machine.shape import shape_of
from saw.memory.fit import fits, largest_tokens, memory_of_a_gpu, usable
from saw.memory.phases import CONTEXTS, FRAGMENTATION, GIB, LOGITS_COPIES, Estimate, estimate
from saw.report.tables import markdown
from saw.runs.compose import compose


def table(found: Estimate, gpu_bytes: float) -> str:
    """Parts by phases, in GiB, as Markdown."""
    share = found.settings.share
    names = list(dict.fromkeys(part for phase in found.phases for part in phase.parts))
    rows = [[name, *(_gib(phase.parts.get(name, 0)) for phase in found.phases)] for name in names]
    rows.append(["vLLM", *(_gib(share * gpu_bytes if phase.vllm else 0) for phase in found.phases)])
    allowance = [FRAGMENTATION * sum(phase.parts.values()) + CONTEXTS for phase in found.phases]
    rows.append(["allowance", *map(_gib, allowance)])
    rows.append(["**all**", *(_gib(phase.total(gpu_bytes, share)) for phase in found.phases)])
    return markdown(["GiB per GPU", *(phase.name for phase in found.phases)], rows, left=1)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size else ""


def summary(found: Estimate, gpu_bytes: float) -> str:
    """The peak, the KV cache, and the largest micro-batch, in one line."""
    peak = found.peak(gpu_bytes)
    need = peak.total(gpu_bytes, found.settings.share)
    return (
        f"{'with' if found.flash_attn else 'without'} flash-attn {need / GIB:.1f} of {gpu_bytes / GIB:.1f} GiB at the "
        f"peak ({peak.name}); "
        f"KV cache of {found.kv_tokens(gpu_bytes):,} tokens; micro-batches of up to "
        f"{largest_tokens(found, gpu_bytes):,} tokens fit"
    )


def check(commands: Iterable[Sequence[str]], gpus: int) -> tuple[list[str], list[str]]:
    """The estimate of each training on this machine's GPUs, or for 80 GB.

    Args:
        commands (Iterable[Sequence[str]]): Hydra overrides of the trainings; one per experiment is estimated.
        gpus (int): of all nodes together.

    Returns:
        tuple[list[str], list[str]]: one line per estimate, and what does not fit.
    """
    on_cluster = cluster_address() is not None
    here = None if on_cluster else memory_of_a_gpu()
    assumed = "the cluster's GPUs are not queried" if on_cluster else "no GPU here"
    where = "this machine's GPUs" if here else f"{assumed}; for 80 GB"
    gpu_bytes = here or usable(80)
    experiments: dict[str, Sequence[str]] = {}
    for command in commands:
        experiments.setdefault(_experiment(command), command)
    results: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # many experiments have the same result
    for name, command in experiments.items():
        try:
            config = compose(*command)
            found = estimate(config, shape_of(config.actor_rollout_ref.model.path), gpus)
            line, too_much = summary(found, gpu_bytes), fits(found, gpu_bytes)
        except ValueError as reason:
            line, too_much = f"no estimate: {reason}", []
        results.setdefault((line, tuple(too_much)), []).append(name)
    lines = [f"memory ({where}), {', '.join(names)}: {line}" for (line, _), names in results.items()]
    return lines, [f"memory, {', '.join(names)}: {fault}" for (_, faults), names in results.items() for fault in faults]


def _experiment(command: Sequence[str]) -> str:
    """The overrides that identify the experiment, without seed and folders."""
    return " ".join(part for part in command if part.startswith(("experiment=", "model=", "saw.method=")))


#: The cases in docs/memory.md: model, number of GPUs, GB of each.
DOCUMENTED = [(model, gpus, gib) for model in ("1.5b", "3b") for gpus, gib in ((4, 80), (8, 80), (4, 40))]


def document() -> list[str]:
    """The tables of docs/memory.md: results, copies of the logits, and each machine's phases."""
    configs = {
        (model, method): compose("experiment=toolrl", f"model=qwen2.5-{model}", f"saw.method={method}")
        for model in ("1.5b", "3b")
        for method in ("saw_gdpo", "gradient_gdpo")
    }

    def found(model: str, gpus: int, method: str = "saw_gdpo", flash_attn: bool = True) -> Estimate:
        return estimate(configs[model, method], shape_of(f"Qwen/Qwen2.5-{model}-Instruct"), gpus, flash_attn)

    header, rows, machines = ["GPUs", "method", "flash-attn", "peak, GiB", "largest micro-batch", "KV, tokens"], [], []
    for model, gpus, gib in DOCUMENTED:
        for method, flash_attn in itertools.product(("saw_gdpo", "gradient_gdpo"), (True, False)):
            one = found(model, gpus, method, flash_attn)
            peak = one.peak(usable(gib)).total(usable(gib), one.settings.share) / GIB
            verdict = "" if not fits(one, usable(gib)) else ", too much"
            words = [f"{model.upper()} on {gpus} x {gib} GB", method, "yes" if flash_attn else "no"]
            numbers = [
                f"{peak:.1f}{verdict}",
                f"{largest_tokens(one, usable(gib)):,}",
                f"{one.kv_tokens(usable(gib)):,}",
            ]
            rows.append(words + numbers)
        machines.append(f"### {model.upper()} on {gpus} x {gib} GB\n\n{table(found(model, gpus), usable(gib))}")
    copies = [[entropy, "yes" if flash else "no", *map(str, row)] for (entropy, flash), row in LOGITS_COPIES.items()]
    of_logits = ["entropy", "flash-attn", "no gradients", "update", "several objectives"]
    return [markdown(header, rows, left=3), markdown(of_logits, copies, left=2), *machines]
