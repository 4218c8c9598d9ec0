"""What a training reads: the model, its tokenizer, the data, and the reward function."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saw.doctor.lines import say, shortened
from saw.machine import environment, hub
from saw.machine.line import Line, missing, note, ok, warning

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Time limit in seconds for one request.
LIMIT = 10.0
#: Folder below $SAW_RUNS -> the script that makes it before training, and the module that the script uses.
MAKERS: Mapping[str, tuple[str, str]] = {
    "quickstart/data": ("bash scripts/quickstart.sh", "data_prep.toy_toolrl"),
    "quickstart/model": ("bash scripts/quickstart.sh", "recipes.quickstart.toy_model"),
    "study_toys/model": ("bash scripts/study.sh lm", "recipes.quickstart.toy_model"),
    "tldr/data": ("bash scripts/reproduce_table2.sh", "data_prep.tldr"),
    "toolrl/data": ("bash scripts/reproduce_table1.sh --source rlla_rl.json", "data_prep.toolrl --source rlla_rl.json"),
}
#: The files in a folder of data.
SPLITS = ("train.parquet", "test.parquet")


@functools.cache
def hub_fault() -> str | None:
    """Why the Hub does not answer, tried only once; None if it does."""
    say(f"calling the Hub, {hub.limit():g} s at most")
    return hub.fault()


def look_for_the_hub(names: Sequence[Any]) -> None:
    """For models on the Hub: if it does not answer, do not call it again."""
    if any(map(hub.is_on_hub, names)) and hub_fault():
        hub.use_cache_only()


def files_on_hub(repository: str) -> list[str]:
    """The names of a repository's files, from the Hub.

    Raises:
        OSError: if the Hub does not answer or refuses.
    """
    if fault := hub_fault():
        raise ConnectionError(fault)
    from huggingface_hub import HfApi

    return [file.rfilename for file in HfApi().model_info(repository, timeout=LIMIT).siblings or []]


def model(
    name: str,
    thing: str = "model",
    cached: hub.Lookup = hub.in_cache,
    listed: Callable[[str], Sequence[str]] | None = files_on_hub,
    faults: Callable[[Path], str | None] | None = None,
) -> Line:
    """A model's configuration and weights: in a folder, in the cache, or on the Hub.

    Args:
        name (str): a folder or the Hub's name.
        thing (str): the line's name.
        cached (Lookup): finds a file of the Hub in the cache.
        listed (Callable | None): lists its files on the Hub; None if the Hub may not be called.
        faults (Callable | None): what is wrong with a folder, None if nothing is; by default :func:`folder_fault`.
    """
    needed = "config.json and weights"
    if "://" in name:
        return warning(thing, f"{name}, not checked", needed, "make sure that every node can read it")
    if Path(name).expanduser().is_dir():
        if fault := (faults or folder_fault)(Path(name).expanduser()):
            remedy = "copy the whole model there, or name another folder in actor_rollout_ref.model.path"
            return missing(thing, fault, needed, remedy)
        return ok(thing, f"in {Path(name).expanduser()}", needed)
    if not hub.is_on_hub(name):
        if maker := maker_of(Path(name)):
            return note(thing, f"not yet: {name}", needed, f"{maker[0]} makes it before training")
        remedy = "name an existing folder or a model of the Hub (OWNER/NAME) in actor_rollout_ref.model.path"
        return missing(thing, f"{name}: there is no such folder", needed, remedy)
    absent = hub.absent_files(lambda file: cached(name, file))
    if not absent:
        return ok(thing, f"{name}, in this machine's cache", needed)
    found = f"{name}, not in the cache (without {absent[0]})"
    if listed is None:
        return warning(thing, f"{found}; the Hub was not asked", needed, download(name))
    try:
        files = listed(name)
    except Exception as error:  # noqa: BLE001  the Hub's client has errors of several libraries
        remedy = f"where there is a network: {download(name)} (HF_TOKEN for a model with restricted access)"
        return missing(thing, f"{found}; the Hub: {type(error).__name__}: {shortened(str(error), 160)}", needed, remedy)
    if absent := hub.absent_files(lambda file: file if file in files else None, read=False):
        return missing(thing, f"{name} on the Hub lacks {', '.join(absent)}", needed, "name another model")
    return ok(thing, f"{name}, on the Hub", needed)


def folder_fault(folder: Path) -> str | None:
    """What is wrong with a model's folder; None if nothing is."""
    from saw.runs import inputs

    if not (folder / "config.json").is_file():
        return f"{folder}: a folder without config.json"
    fault = inputs.weights_fault(folder)
    return f"{folder}: a folder {fault}" if fault else None


def download(name: str) -> str:
    """The command that fetches a model from the Hub."""
    return f"{environment.program('hf')} download {name}"


def has_config(name: str, cached: hub.Lookup = hub.in_cache) -> bool:
    """Whether a model's config.json is on this machine.

    Args:
        name (str): a folder or the Hub's name.
        cached (Lookup): finds a file of the Hub in the cache.
    """
    folder = Path(name).expanduser()
    return (folder / "config.json").is_file() or (hub.is_hub_name(name) and cached(name, "config.json") is not None)


def maker_of(folder: Path) -> tuple[str, str] | None:
    """The script that makes a folder, and the module that the script uses; None if no script does."""
    runs, folder = Path(os.environ.get("SAW_RUNS", "runs")).expanduser().absolute(), folder.absolute()
    return MAKERS.get(folder.relative_to(runs).as_posix()) if folder.is_relative_to(runs) else None


def tokenizer(config: DictConfig, calls: bool = True, cached: hub.Lookup = hub.in_cache) -> Line:
    """The tokenizer and its chat template, checked as at the start of a training.

    Args:
        config (DictConfig): the experiment.
        calls (bool): whether it may be fetched from the Hub.
        cached (Lookup): finds a file of the Hub in the cache.
    """
    section = config.actor_rollout_ref.model
    name, needed = section.get("tokenizer_path") or section.path, "one with a chat template"
    folder = Path(name).expanduser()
    if not folder.is_dir() and not hub.is_hub_name(name):
        say_it = note if maker_of(folder) else missing
        return say_it("tokenizer", f"{name}: there is no such folder", needed, "see the line of the model")
    if not (calls or folder.is_dir() or cached(name, "tokenizer_config.json")):
        return warning("tokenizer", f"{name}, not here; the Hub was not asked", needed, download(name))
    from saw.runs import inputs

    if faults := list(inputs.tokenizer_faults(config)):
        remedy = "see the line of the model; or set actor_rollout_ref.model.tokenizer_path"
        return missing("tokenizer", shortened("; ".join(faults)), needed, remedy)
    return ok("tokenizer", f"of {name}", needed)


def files(config: DictConfig, key: str) -> Line:
    """Data files, checked as at the start of a training.

    Args:
        config (DictConfig): the experiment.
        key (str): ``train_files`` or ``val_files``.
    """
    from saw.runs import inputs

    thing = {"train_files": "training data", "val_files": "validation data"}[key]
    if (config.data.get("custom_cls") or {}).get("path"):
        return warning(thing, "read by data.custom_cls, not checked", "", "make sure that it finds its files")
    needed = f"rows with {', '.join(map(str, inputs.columns(config)))}"
    made = f"{environment.python()} -m data_prep.toolrl (or data_prep.tldr) makes one"
    remedy = f"set data.{key} to an existing file; {made}"
    names = inputs.data_names(config, f"data.{key}")
    if remote := [name for name in names if not inputs.is_local(name)]:
        return warning(thing, f"{remote[0]}, not checked", needed, "make sure that every node can read it")
    paths = list(map(inputs.local_path, names))
    absent = [absent_data(thing, path, needed, remedy) for path in paths if not path.exists()]
    for line in sorted(absent, key=lambda line: line.status != "missing"):
        return line
    faults, counts = inputs.check_data(config, f"data.{key}")
    if faults:
        return missing(thing, shortened("; ".join(faults)), needed, remedy)
    return ok(thing, "; ".join(f"{rows} rows in {path}" for rows, path in zip(counts, paths, strict=True)), needed)


def absent_data(thing: str, path: Path, needed: str, remedy: str) -> Line:
    """The line of a missing data file, with the commands that make it, if any."""
    maker = maker_of(path.parent) if path.name in SPLITS else None
    if maker is None:
        return missing(thing, f"{path}: there is no such file", needed, remedy)
    script, module = maker
    done = path.parent / "data.done.json"
    if done.exists():  # the script would skip it
        return missing(thing, f"{path} was deleted", needed, f"remove {done}, then {script} makes it again")
    alone = f"{environment.python()} -m {module} --out {shlex.quote(str(path.parent))}"
    return note(thing, f"not yet: {path}", needed, f"{script} makes it before training; to make it now: {alone}")


def reward_function(config: DictConfig, load: Callable[[DictConfig], Any]) -> Line:
    """The reward function.

    Args:
        config (DictConfig): the experiment.
        load (Callable[[DictConfig], Any]): loads it; returns None if there is none.
    """
    section = config.reward.custom_reward_function
    objectives = ", ".join(config.saw.objectives)
    name = f"{section.name} of {section.path}"
    try:
        function = load(config)
    except (ImportError, AttributeError, OSError, SyntaxError, RuntimeError) as error:
        remedy = "set reward.custom_reward_function.path and name"
        return missing("reward function", f"{name}: {shortened(str(error), 160)}", objectives, remedy)
    if function is None:
        remedy = "set reward.custom_reward_function.path and name"
        return missing("reward function", "reward.custom_reward_function.path is not set", objectives, remedy)
    returned = getattr(function, "objectives", None)
    if returned is not None and (absent := [name for name in config.saw.objectives if name not in returned]):
        remedy = f"saw.objectives has {', '.join(absent)}: remove it, or have the function return it"
        return missing("reward function", f"{name} returns {', '.join(returned)}", objectives, remedy)
    return ok("reward function", name, objectives)
