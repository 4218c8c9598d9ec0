"""Evaluate a checkpoint on held-out posts: generate summaries and have them judged, several times.

    python -m recipes.tldr.evaluate --model FOLDER/hf --data runs/tldr/data/test.parquet --out FOLDER/judged

The judge and its rubric are those of the training (``--judge gemini``). ``--second-judge openai`` adds another, and
reports how far the two agree, because a model trained on a judge has learned that judge's taste. Judges are the files
of ``configs/judge``; KEY=VALUE overrides apply to the first. Summaries are generated once, and verdicts are kept in the
judge's cache: a killed run resumes, and no verdict is paid for twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rouge_score import rouge_scorer
from scipy.stats import spearmanr
from tqdm import tqdm

from recipes.common import evaluation
from recipes.common.serve import SERVED, server
from saw.records.files import read_lines, write_whole
from saw.records.provenance import versions
from saw.rewards import JUDGE
from saw.rewards.judge import Judge, JudgeOptions, Verdict, prompt
from saw.rewards.judge.options import JudgeError
from saw.runs.compose import NotComposed, checked_override, compose
from saw.runs.process_tree import JobFailed

ROUGE = ("rouge1", "rouge2", "rougeL")
#: Share of the summaries that may lack a verdict; above it the evaluation fails.
MAX_MISSING = 0.05


def judge_options(name: str, overrides: Sequence[str], faults: Path) -> JudgeOptions:
    """A judge of ``configs/judge``.

    Raises:
        JudgeError: if it cannot work here.
    """
    try:
        section = OmegaConf.select(compose("objectives=tldr", f"judge={name}", *overrides), JUDGE)
        section.faults = str(faults)
        options = JudgeOptions.of(OmegaConf.to_container(section, resolve=True))  # type: ignore[arg-type]
    except (NotComposed, OmegaConfBaseException) as fault:  # the latter if a variable is not set
        raise JudgeError(str(fault)) from fault
    if options.base_url is None:
        raise JudgeError(
            f"--judge {name}: verl serves it only during training; serve it with vLLM and use judge=server"
        )
    prompt.check(options.prompt_path)
    return options


async def summarise(rows: list[dict[str, Any]], address: str, arguments: argparse.Namespace, seed: int) -> list[str]:
    """One summary of each post."""
    client = openai.AsyncOpenAI(base_url=address, api_key="none", timeout=600, max_retries=3)
    slots = asyncio.Semaphore(arguments.threads)

    async def one(row: dict[str, Any]) -> str:
        """Ask for one summary once a slot is free."""
        async with slots:
            response = await client.chat.completions.create(
                model=SERVED, messages=row["prompt"], **arguments.sampling.request(seed, row["prompt"])
            )
        return response.choices[0].message.content or ""

    return list(await asyncio.gather(*(one(row) for row in rows)))


async def judge_all(judge: Judge, rows: list[dict[str, Any]], summaries: list[str], variant: int) -> list[Verdict]:
    """A verdict on each summary."""
    bar = tqdm(total=len(rows), desc=f"    {judge.options.model}", leave=False, disable=None)

    async def one(row: dict[str, Any], summary: str) -> Verdict:
        """Have one summary judged."""
        fields = {
            "reddit_text": row["extra_info"]["post"],
            "human_summary": row["reward_model"]["ground_truth"],
            "model_summary": summary,
        }
        verdict = await judge.score(fields, variant)
        bar.update()
        return verdict

    with bar:
        verdicts = list(
            await asyncio.gather(*(one(row, summary) for row, summary in zip(rows, summaries, strict=True)))
        )
    await judge.close()
    return verdicts


def _has(verdict: Verdict, objective: str) -> bool:
    return verdict.fault is None and math.isfinite(verdict.scores.get(objective, math.nan))


def describe(verdicts: list[Verdict], objectives: Sequence[str]) -> dict[str, Any]:
    """Mean scores of the summaries that have a verdict, and their cost.

    ``without_cost`` is the number of summaries whose cost is not fully known; the unknown part is not in ``dollars``.
    """
    present = [verdict.scores for verdict in verdicts if all(_has(verdict, name) for name in objectives)]
    means = {name: statistics.fmean(scores[name] for scores in present) for name in objectives} if present else {}
    return {
        **means,
        "total": sum(means.values()) if means else math.nan,
        "missing": len(verdicts) - len(present),
        "requests": sum(verdict.requests for verdict in verdicts),
        "dollars": sum(verdict.dollars for verdict in verdicts if math.isfinite(verdict.dollars)),
        "without_cost": sum(verdict.uncounted > 0 or not math.isfinite(verdict.dollars) for verdict in verdicts),
    }


def agreement(first: list[Verdict], second: list[Verdict], objectives: Sequence[str]) -> dict[str, dict[str, float]]:
    """How far two judges agree on the summaries that both have judged.

    Returns:
        dict[str, dict[str, float]]: for each objective the number of pairs ``n``, the share of equal scores, of scores
        that are at most one apart, Spearman's rank correlation (NaN if a judge gives only one score), and the mean
        of second minus first.
    """
    result = {}
    for name in objectives:
        pairs = [
            (one.scores[name], two.scores[name])
            for one, two in zip(first, second, strict=True)
            if _has(one, name) and _has(two, name)
        ]
        ones, twos = [one for one, _ in pairs], [two for _, two in pairs]
        varied = len(set(ones)) > 1 and len(set(twos)) > 1
        result[name] = {
            "n": len(pairs),
            "equal": statistics.fmean(one == two for one, two in pairs) if pairs else math.nan,
            "within_one": statistics.fmean(abs(one - two) <= 1 for one, two in pairs) if pairs else math.nan,
            "spearman": float(spearmanr(ones, twos).statistic) if varied else math.nan,
            "mean_difference": statistics.fmean(two - one for one, two in pairs) if pairs else math.nan,
        }
    return result


def texts(rows: list[dict[str, Any]], summaries: list[str]) -> dict[str, float]:
    """Lengths in words, and ROUGE's F measure against the references."""
    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True)
    references = [row["reward_model"]["ground_truth"] for row in rows]
    scored = [scorer.score(reference, summary) for reference, summary in zip(references, summaries, strict=True)]
    words = [len(summary.split()) for summary in summaries]
    return {
        "words_mean": statistics.fmean(words),
        "words_median": float(statistics.median(words)),
        "words_max": float(max(words)),
        "reference_words_mean": statistics.fmean(len(reference.split()) for reference in references),
        **{name: statistics.fmean(score[name].fmeasure for score in scored) for name in ROUGE},
    }


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what is missing, and write ``evaluation.json``."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(arguments.data).to_pylist()[: arguments.limit]
    options = {arguments.judge: judge_options(arguments.judge, arguments.overrides, out / "faults.jsonl")}
    if arguments.second_judge:
        name = arguments.second_judge
        options[name] = judge_options(name, (), out / f"faults_{name}.jsonl")
    for judge in options.values():
        Judge(judge)  # fails on a missing key before the model is loaded
    written = [out / f"run{number}.jsonl" for number in range(1, arguments.runs + 1)]
    summarising = {
        "model": str(arguments.model),
        "limit": arguments.limit,
        "sampling": arguments.sampling.as_dict(),
        "seeds": "a hash of the run's number less 1 and the messages",
    }
    if not (out / "settings.json").exists() and any(path.exists() for path in written):
        raise SystemExit(f"{out} holds summaries, but no settings.json with their settings; remove it")
    evaluation.claim(out, summarising)
    summarise_missing(arguments, rows, written)
    runs = [judge_run(arguments, rows, path, variant, options) for variant, path in enumerate(written)]
    settings = {
        **summarising,
        "judge": {name: {"model": judge.model, "temperature": judge.temperature} for name, judge in options.items()},
        "first_judge": arguments.judge,
        "second_judge": arguments.second_judge,
        "rows": len(rows),
    }
    software = versions("vllm", "torch", "transformers", "rouge-score")
    return evaluation.write(out, "recipes.tldr.evaluate", software, settings, runs)


def summarise_missing(arguments: argparse.Namespace, rows: list[dict[str, Any]], written: Sequence[Path]) -> None:
    """Write the files of summaries that do not exist yet, one per run; the run's index is its seed."""
    left = [(seed, path) for seed, path in enumerate(written) if not path.exists()]
    if not left:
        return
    with server(str(arguments.model), arguments.out, arguments.gpus, arguments.vllm) as address:
        for seed, path in left:
            summaries = asyncio.run(summarise(rows, address, arguments, seed))
            new = [
                json.dumps({"id": row["extra_info"]["id"], "summary": summary}) + "\n"
                for row, summary in zip(rows, summaries, strict=True)
            ]
            write_whole(path, "".join(new))
            print(f"{path.name}: {len(rows)} summaries", flush=True)


def judge_run(
    arguments: argparse.Namespace,
    rows: list[dict[str, Any]],
    path: Path,
    variant: int,
    options: Mapping[str, JudgeOptions],
) -> dict[str, Any]:
    """Scores of the summaries in a file by each judge, their texts' measures, and the judges' agreement.

    Raises:
        SystemExit: if the file is of other posts, or a judge gave too few verdicts.
    """
    lines = read_lines(path)
    if [line["id"] for line in lines] != [row["extra_info"]["id"] for row in rows]:
        raise SystemExit(
            f"{path} has {len(lines)} summaries, but not of the posts of {arguments.data}; remove {arguments.out}"
        )
    summaries = [line["summary"] for line in lines]
    verdicts = {name: asyncio.run(judge_all(Judge(judge), rows, summaries, variant)) for name, judge in options.items()}
    objectives = options[arguments.judge].objectives
    run = {name: describe(given, objectives) for name, given in verdicts.items()} | {"texts": texts(rows, summaries)}
    if arguments.second_judge:
        run["agreement"] = agreement(verdicts[arguments.judge], verdicts[arguments.second_judge], objectives)
    for name in options:
        if run[name]["missing"] > MAX_MISSING * len(rows):
            raise SystemExit(
                f"{path.name}: judge {name} gave no verdict on {run[name]['missing']} of {len(rows)} summaries; "
                f"the reasons: {options[name].faults}; the same command asks for those again"
            )
    return run


def main() -> None:
    """Command line."""
    parser = evaluation.parser(__doc__, temperature=1.0, max_tokens=512, why="as in training", threads=64)
    parser.add_argument("--data", type=Path, required=True, help="held-out rows, a parquet of data_prep.tldr")
    parser.add_argument("--judge", default="gemini", help="a file of configs/judge (gemini)")
    parser.add_argument("--second-judge", help="another judge, to measure how far the two agree")
    parser.add_argument(
        "--overrides",
        nargs="*",
        type=checked_override,
        default=[],
        metavar="KEY=VALUE",
        help="Hydra overrides of the first judge",
    )
    arguments = evaluation.parse(parser)
    if not arguments.data.is_file():
        parser.error(f"--data {arguments.data}: there is no such file")
    try:
        result = evaluate(arguments)
    except (JobFailed, JudgeError) as failure:
        raise SystemExit(f"the evaluation failed; rerun the same command to resume: {failure}") from None
    for number, run in enumerate(result["runs"], start=1):
        print(f"run {number}: " + "  ".join(f"{key} {value:.3f}" for key, value in run[arguments.judge].items()))
    print(f"{arguments.out / 'evaluation.json'}")


if __name__ == "__main__":
    main()
