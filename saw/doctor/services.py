"""The services that a training uses: wandb, the judge, the Ray cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saw.doctor.cluster import LIMIT as CLUSTER_LIMIT
from saw.doctor.cluster import REFUSED, Cluster, look
from saw.doctor.lines import say, shortened
from saw.machine import environment, hub
from saw.machine.line import Line, missing, ok, warning
from saw.rewards import JUDGE

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Time limits in seconds for a server to answer, and for the judge to reply.
LIMIT, JUDGE_LIMIT = 5.0, 15.0
WANDB = "https://api.wandb.ai"
#: A question to the judge that costs almost nothing.
QUESTION = {"reddit_text": "I slept.", "human_summary": "Sleep.", "model_summary": "I slept."}


def netrc_has(address: str) -> bool:
    """Whether ``~/.netrc``, where ``wandb login`` writes, has a key for a server."""
    from requests.utils import get_netrc_auth

    return get_netrc_auth(address) is not None


def reach(address: str, limit: float = LIMIT) -> None:
    """Call a server, after announcing it.

    Args:
        address (str): its URL.
        limit (float): seconds for the whole call.

    Raises:
        OSError: if there is no answer.
    """
    say(f"calling {address}, {limit:g} s at most")
    hub.reach(address, limit)


def wandb(
    config: DictConfig,
    calls: bool = True,
    environ: Mapping[str, str] = os.environ,
    netrc_has: Callable[[str], bool] = netrc_has,
    reach: Callable[[str], None] = reach,
) -> Line:
    """wandb's key, and whether its server answers, if the training logs to it.

    Args:
        config (DictConfig): the experiment.
        calls (bool): whether the server may be called.
        environ (Mapping[str, str]): may hold ``WANDB_API_KEY``, ``WANDB_MODE``, ``WANDB_BASE_URL``.
        netrc_has (Callable[[str], bool]): whether ``~/.netrc`` has a key.
        reach (Callable[[str], None]): calls the server, raises OSError.
    """
    logger = config.trainer.logger
    if "wandb" not in ([logger] if isinstance(logger, str) else list(logger)):
        return ok("wandb", "not used", "nothing: trainer.logger has no wandb")
    mode = environ.get("WANDB_MODE", "online")
    if mode in ("offline", "disabled", "dryrun"):
        return ok("wandb", f"WANDB_MODE={mode}", "no key")
    address = environ.get("WANDB_BASE_URL", WANDB)
    other = "WANDB_MODE=offline, or trainer.logger=[console,file]"
    if environ.get("WANDB_API_KEY"):
        key = "key in WANDB_API_KEY"
    elif netrc_has(address):
        key = "key in ~/.netrc"
    else:
        return missing(
            "wandb",
            f"no key for {address}",
            "a key",
            f"export WANDB_API_KEY, or {environment.program('wandb')} login; or {other}",
        )
    if not calls:
        return ok("wandb", f"{key}; {address} not called", "a key")
    try:
        reach(address)
    except OSError as error:
        found = f"{key}; {address} does not answer: {shortened(str(error), 160)}"
        return missing("wandb", found, "a key, and the server", f"check the network or its proxy; or {other}")
    return ok("wandb", f"{key}; {address} answers", "a key, and the server")


def judge_options(config: DictConfig) -> Any:
    """The judge of an experiment; None if it has none.

    Raises:
        JudgeError: if its options are wrong.
    """
    from omegaconf import OmegaConf

    section = OmegaConf.select(config, JUDGE)
    if section is None:
        return None
    from saw.rewards.judge.options import JudgeOptions

    plain: Any = OmegaConf.to_container(section, resolve=True)
    return JudgeOptions.of(plain)


def judge_fault(config: DictConfig) -> str | None:
    """What is wrong with the judge's options or key; None if nothing is."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        options = judge_options(config)
        if options is not None:
            options.api_key()
    except (ValueError, OmegaConfBaseException) as error:  # the latter if a variable is not set
        return str(error)
    return None


def judge_key(config: DictConfig) -> Line:
    """The judge's key.

    Args:
        config (DictConfig): the experiment.
    """
    if fault := judge_fault(config):
        remedy = "export the variable, or choose another judge: judge=gemini, openai, server, verl"
        return missing("judge's key", shortened(fault), "a judge's options and key", remedy)
    options = judge_options(config)
    if options is None:
        return ok("judge's key", "no judge", "nothing: the rewards need none")
    key = options.api_key()
    if key is None:
        return ok("judge's key", f"{options.model} needs none", "no key")
    return ok("judge's key", f"in {options.api_key_env}", f"a key for {options.base_url}")


def ask_judge(options: Any) -> Any:
    """Ask a judge once.

    Args:
        options (JudgeOptions): the judge; the answer is not cached.

    Returns:
        saw.rewards.judge.Verdict: with a fault if it did not answer with scores.
    """
    from saw.rewards.judge import Judge

    limit = min(JUDGE_LIMIT, options.timeout)
    limits = {"attempts": 1, "longest_wait": 0.0, "timeout": limit, "cache": None, "faults": None}
    say(f"asking the judge {options.model} at {options.base_url}, {limit:g} s at most")

    async def once() -> Any:
        judge = Judge(options.model_copy(update=limits))
        try:
            return await judge.score(QUESTION)
        finally:
            await judge.close()

    return asyncio.run(once())


def judge_call(config: DictConfig, calls: bool = True, ask: Callable[[Any], Any] = ask_judge) -> Line:
    """Whether the judge answers one cheap question.

    Args:
        config (DictConfig): the experiment.
        calls (bool): whether the judge may be called.
        ask (Callable): asks it.
    """
    thing, needed = "judge's answer", "scores for one short text"
    if judge_fault(config):
        return warning(thing, "not asked", needed, "see the line of the judge's key")
    options = judge_options(config)
    if options is None:
        return ok(thing, "no judge", "nothing: the rewards need none")
    if options.base_url is None and config.reward.reward_model.enable:
        return ok(thing, f"verl serves {options.model} when the training starts")
    if not calls:
        return warning(thing, "not asked (--no-calls)", needed, "leave out --no-calls")
    verdict = ask(options)
    if verdict.fault is not None:
        remedy = f"check the key, the model and the address in {JUDGE}, and the network or its proxy"
        return missing(thing, f"{options.model} at {options.base_url}: {shortened(verdict.fault)}", needed, remedy)
    scores = ", ".join(f"{name} {score:g}" for name, score in verdict.scores.items())
    return ok(thing, f"{options.model}: {scores}, {verdict.seconds:.1f} s, ${verdict.dollars:.5f}", needed)


def cluster_of(
    config: DictConfig | None,
    environ: Mapping[str, str] = os.environ,
    look: Callable[[str, Path], Cluster] = look,
) -> Cluster | None:
    """The Ray cluster that a training would join; None if it starts its own.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        environ (Mapping[str, str]): may hold ``RAY_ADDRESS``.
        look (Callable[[str, Path], Cluster]): connects, and checks the folder of the training.
    """
    address = environ.get("RAY_ADDRESS")
    try:
        from saw.machine.accelerator import cluster_address

        address = cluster_address(environ)
        if config is not None:
            from saw.machine.cluster import running

            address = running(config)
        folder = config.trainer.default_local_dir if config is not None else environ.get("SAW_RUNS", "runs")
        if address is None:
            return None
        say(f"checking the Ray cluster {address}, {CLUSTER_LIMIT} s at most")
        return look(address, Path(folder))
    except Exception as error:  # noqa: BLE001  each line that needs the cluster shows it
        return Cluster(address or "unknown address", error=f"{type(error).__name__}: {shortened(str(error))}")


def on_the_nodes(check: Callable[[], Line], cluster: Cluster | None) -> Line:
    """A check of files that a training reads; only a warning on a running cluster, whose nodes may have them."""
    line = check()
    if cluster is None or line.status != "missing":
        return line
    return replace(line, status="warning", remedy=f"{line.remedy}; unless the nodes of the Ray cluster have it")


def ray_cluster(config: DictConfig | None, cluster: Cluster | None) -> Line:
    """The Ray cluster.

    Args:
        config (DictConfig | None): the experiment, if there is one.
        cluster (Cluster | None): its state; None if the training starts its own.
    """
    nodes = config.trainer.nnodes if config is not None else 1
    if cluster is None:
        if nodes == 1:
            return ok("Ray cluster", "none: the training starts its own", "1 node")
        remedy = "start one (docs/clusters.md; recipes/toolrl/slurm.sh), and set RAY_ADDRESS; or trainer.nnodes=1"
        return missing("Ray cluster", "RAY_ADDRESS is not set", f"{nodes} nodes", remedy)
    if cluster.error:
        remedy = f"check that it runs and its port is open ({environment.program('ray')} status), or unset RAY_ADDRESS"
        return missing("Ray cluster", f"{cluster.address}: {cluster.error}", f"{nodes} nodes", remedy)
    found = f"{cluster.address}: {len(cluster.nodes)} nodes, {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs"
    if len(cluster.nodes) < nodes:
        return missing(
            "Ray cluster", found, f"{nodes} nodes", "wait until all nodes have joined, or lower trainer.nnodes"
        )
    return ok("Ray cluster", found, f"{nodes} nodes")


def ray_token(cluster: Cluster | None, environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Line:
    """The cluster's token; without one, anyone who can reach its port can run code on its nodes.

    Args:
        cluster (Cluster | None): its state; None if the training starts its own.
        environ (Mapping[str, str]): may hold ``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``.
        home (Path | None): the home folder in which Ray keeps a token; None for the user's.
    """
    thing = "Ray's token"
    if cluster is None:
        return ok(thing, "the training's own Ray makes one", "nothing")
    mode = environ.get("RAY_AUTH_MODE", "").lower()
    kept = Path(environ.get("RAY_AUTH_TOKEN_PATH") or (home or Path.home()) / ".ray" / "auth_token")
    token = bool(environ.get("RAY_AUTH_TOKEN")) or kept.is_file()
    export = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, with the token that the cluster was started with"
    if mode == "token" and not token:
        return missing(thing, f"RAY_AUTH_MODE=token, but no RAY_AUTH_TOKEN or {kept}", "the cluster's token", export)
    if cluster.error == REFUSED:
        return missing(thing, "refused by the cluster", "the cluster's token", export)
    if cluster.error:
        return warning(thing, "not tested: the cluster does not answer", "", "see the line of the Ray cluster")
    if mode != "token":
        remedy = "if others can reach its port, start it with RAY_AUTH_MODE=token"
        return warning(thing, "none: the cluster accepts anyone who reaches it", "a token", remedy)
    return ok(thing, "accepted by the cluster", "the cluster's token")


def shared_files(cluster: Cluster | None) -> Line:
    """Whether all nodes see the folder that the training writes to.

    Args:
        cluster (Cluster | None): its state; None if the training starts its own.
    """
    thing, needed = "shared files", "every node reads what another writes"
    if cluster is None:
        return ok(thing, "one machine", "nothing")
    if cluster.error:
        return warning(thing, "not tested: the cluster does not answer", needed, "see the line of the Ray cluster")
    if blind := [f"{node.name}: {node.fault}" for node in cluster.nodes if node.fault]:
        remedy = "put the repository, SAW_RUNS and trainer.default_local_dir on a disk that all nodes see"
        return missing(thing, f"a file in {cluster.folder} can't be read on {'; '.join(blind)}", needed, remedy)
    return ok(thing, f"{len(cluster.nodes)} nodes read a file in {cluster.folder}", needed)
