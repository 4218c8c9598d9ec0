"""Checks what a training reads and writes, before files of an earlier training are touched.

verl finds most of these faults minutes later, when Ray and the models are up. If the training joins a running Ray
cluster, its nodes may have files that this machine does not: a fault in what is read is then only a warning. The start
(:func:`check`) and the doctor, which has a line for each kind, use the same functions.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from glob import has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from verl.utils.checkpoint.checkpoint_manager import get_checkpoint_tracker_filename
from verl.utils.tracking import Tracking

from saw.machine import environment, hub
from saw.machine.cluster import running
from saw.machine.disk import unwritable
from saw.machine.limits import library_folder_faults
from saw.records.files import read_lines
from saw.records.metrics_file import LOCATION
from saw.runs.handover import DATA, FILES, FOLDERS, WRITTEN
from saw.verl.config import ConfigError
from saw.verl.names import SEEDED, SINGLE_TURN

logger = logging.getLogger(__name__)

MODEL = "actor_rollout_ref.model"
#: The model that verl serves as a judge, if it does.
JUDGE_MODEL = "reward.reward_model.model_path"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
#: How the name of a weight file ends if the weights are split into several files.
SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|bin)$")
#: The first bytes of a file that Git LFS has not fetched.
LFS = b"version https://git-lfs"
_EXPECTED = "expected a folder, or a model of the Hub (OWNER/NAME), with a"
#: Every tokenizer has one of these files, unless it needs the model's own code.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
#: A larger model trains on a CPU only if the user asks for it: Qwen2.5-0.5B is below this limit, 1.5B above.
LARGEST_ON_CPU = 600_000_000


def check(config: DictConfig) -> None:
    """Check everything that the training reads or writes.

    Args:
        config (DictConfig): verl's whole configuration, with absolute paths (:func:`saw.runs.handover.settle`).

    Raises:
        ConfigError: one line per fault, with the key, the value and what is expected.
    """
    written = [*written_faults(config), *folder_faults(config)]
    read = [*file_faults(config), *(fault for key in DATA for fault in data_faults(config, key))]
    read += [*model_faults(config), *tokenizer_faults(config), *judge_model_faults(config)]
    address = running(config)
    if address is not None and read:
        for fault in read:
            logger.warning("%s (seen from here; the nodes of the Ray cluster at %s may have it)", fault, address)
        read = []
    if faults := [*written, *read]:
        raise ConfigError("\n".join(faults))


def written_faults(config: DictConfig) -> list[str]:
    """What is wrong with the files that a training writes, and with the checkpoint that it resumes."""
    return [*_outputs(config), *_resumption(config)]


def file_faults(config: DictConfig) -> Iterator[str]:
    """What is wrong with the files that the configuration names, other than data and models.

    The reward function's file is not looked at here: another check loads it.
    """
    for key in FILES:
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and value and is_local(value) and not local_path(value).is_file():
            yield f"{key} is {value!r}, which does not exist; expected a file"


def data_faults(config: DictConfig, key: str) -> list[str]:
    """What is wrong with the data files of a key in :data:`DATA`."""
    return check_data(config, key)[0]


def check_data(config: DictConfig, key: str) -> tuple[list[str], list[int | None]]:
    """What is wrong with the data files of a key in :data:`DATA`, and each file's number of rows (None: unknown)."""
    if OmegaConf.select(config, "data.custom_cls.path"):
        return [], []  # that class decides which files it reads, and how
    column = config.data.get("prompt_key", "prompt")
    if not isinstance(column, str):
        return [f"data.prompt_key is {column!r}; expected the name of the column with the messages"], []
    names = data_names(config, key)
    if not names:
        return [f"{key} is {OmegaConf.select(config, key)!r}; expected a file of rows, or a list of files"], []
    found = [_check_rows(config, key, name) for name in names]
    faults, rows = [fault for fault, _ in found if fault is not None], [number for _, number in found]
    total = sum(number or 0 for number in rows)
    if key == "data.train_files" and None not in rows and total:
        faults += _too_few(config, total)
    return faults, rows


def data_names(config: DictConfig, key: str) -> list[str]:
    """The data files of a key in :data:`DATA`; empty if its value is neither a file's name nor a list of them."""
    return _names(OmegaConf.select(config, key))


def _names(value: Any) -> list[str]:
    """The files of a setting; empty if it is anything but a file's name or a list of them."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, ListConfig) else []
    return names if all(isinstance(name, str) for name in names) else []


def _too_few(config: DictConfig, rows: int) -> Iterator[str]:
    limit = config.data.get("train_max_samples", -1)
    if not isinstance(limit, int):
        yield f"data.train_max_samples is {limit!r}; expected a number of rows, or -1 for all"
        return
    rows = min(rows, limit) if limit > 0 else rows
    if rows < config.data.train_batch_size:
        yield (
            f"data.train_batch_size is {config.data.train_batch_size}, and data.train_files has {rows} rows; "
            "expected enough for one step"
        )


def _check_rows(config: DictConfig, key: str, name: str) -> tuple[str | None, int | None]:
    """What is wrong with a data file (None: nothing), and its number of rows (None: unknown)."""
    if not is_local(name):
        return None, None
    path = local_path(name)
    if not path.is_file():
        if has_magic(name):
            return f"{key} has {name!r}, a pattern; expected the files themselves, as a list", None
        return f"{key} has {name!r}, {_absence(path)}; expected a file of rows", None
    if path.suffix not in (".parquet", ".json", ".jsonl"):
        return f"{key} has {name!r}; expected .parquet, .json or .jsonl, the formats that verl reads", None
    try:
        there, rows = _parquet(path) if path.suffix == ".parquet" else _json(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"{key} has {name!r}, which can't be read ({_first_line(error)}); expected a file of rows", None
    if not rows:
        return f"{key} has {name!r}, which has no rows", rows
    if absent := [column for column in columns(config) if column not in there]:
        return f"{key} has {name!r} without {', '.join(absent)}; its columns are {', '.join(there)}", rows
    for column, (good, expected) in columns(config).items():
        if not good(there[column]):
            return f"{key} has {name!r}, whose column {column} is of type {there[column]}; expected {expected}", rows
    return None, rows


def _parquet(path: Path) -> tuple[dict[str, pa.DataType], int]:
    """The type of each column of a parquet file, and its number of rows."""
    file = pq.ParquetFile(path)
    return {field.name: field.type for field in file.schema_arrow}, file.metadata.num_rows


def _json(path: Path) -> tuple[dict[str, pa.DataType], int]:
    """The same of a file of JSON lines, or of a JSON array; the types are those of the first row.

    Raises:
        ValueError: if it is neither.
    """
    try:
        rows = json.loads(path.read_bytes())
    except ValueError:
        rows = read_lines(path)
    rows = rows if isinstance(rows, list) else [rows]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it has rows that are not JSON objects")
    return {key: pa.infer_type([value]) for key, value in (rows[0] if rows else {}).items()}, len(rows)


def columns(config: DictConfig) -> dict[str, tuple[Callable[[pa.DataType], bool], str]]:
    """The columns that are read by verl, its reward managers and ours: a check of the type, and what is expected."""
    agent = config.actor_rollout_ref.rollout.get("agent") or {}
    own = agent.get("agent_loop_config_path") or agent.get("agent_loop_manager_class")
    messages = (_anything if own else _are_messages, "a list of messages with role and content")
    needed: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {config.data.get("prompt_key", "prompt"): messages}
    if config.reward.reward_manager.source == "register":
        needed["data_source"] = (_anything, "text")
        needed["reward_model"] = (_has_truth, "a mapping with ground_truth")
    if agent.get("default_agent_loop") == SEEDED:
        remedy = f"otherwise {SEEDED} gives equal questions of a step equal answers; {SINGLE_TURN} needs none"
        needed["extra_info"] = (_has_index, f"a mapping with index, a number for each row: {remedy}")
    return needed


def _anything(kind: pa.DataType) -> bool:
    return True


def _are_messages(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    item = kind.value_type  # null: the first row of a JSON file has an empty list
    if pa.types.is_null(item):
        return True
    return pa.types.is_struct(item) and all(item.get_field_index(name) >= 0 for name in ("role", "content"))


def _has_truth(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("ground_truth") >= 0


def _has_index(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("index") >= 0


def models(config: DictConfig) -> list[Any]:
    """Everything that names a model or a part of one: folders, names on the Hub, or anything else."""
    model = config.actor_rollout_ref.model
    judge = [OmegaConf.select(config, JUDGE_MODEL)] if config.reward.reward_model.enable else []
    return [model.path, model.get("hf_config_path"), model.get("tokenizer_path"), *judge]


def model_faults(config: DictConfig) -> Iterator[str]:
    """What is wrong with the model: its configuration is loaded as verl's ``HFModelConfig`` will load it."""
    model = config.actor_rollout_ref.model
    if fault := _path_fault(model.path):
        yield fault
        return
    if not is_local(model.path):
        return
    if fault := _hub_fault(f"{MODEL}.path", model.path):
        yield fault
        return
    key = "hf_config_path" if model.get("hf_config_path") else "path"
    try:
        _model_config(config)
    except Exception as error:  # noqa: BLE001  a config.json may hold anything
        yield f"{MODEL}.{key} is {model[key]!r}; {_EXPECTED} config.json ({_first_line(error)})"
    folder = local_path(model.path)
    if folder.is_dir() and (fault := weights_fault(folder)):
        yield f"{MODEL}.path is {model.path!r}, a folder {fault}"


def judge_model_faults(config: DictConfig) -> Iterator[str]:
    """What is wrong with the model that verl serves as a judge, if it does and the Hub does not answer."""
    name = OmegaConf.select(config, JUDGE_MODEL)
    if config.reward.reward_model.enable and isinstance(name, str) and (fault := _hub_fault(JUDGE_MODEL, name)):
        yield fault


def _hub_fault(key: str, name: str) -> str | None:
    """A message, if the Hub does not answer, on the model's files that this machine's cache lacks; else None."""
    if not hub.is_on_hub(name) or (why := hub.fault()) is None:
        return None
    absent = hub.absent_files(lambda file: hub.in_cache(name, file))
    if not absent:
        return None
    return (
        f"{key} is {name!r}, but this machine's cache lacks {absent[0]}, and the Hub does not answer ({why}); "
        f"where there is a network: {environment.program('hf')} download {name}; or set it to a folder"
    )


def tokenizer_faults(config: DictConfig) -> Iterator[str]:
    """What is wrong with the tokenizer, loaded as verl's ``HFModelConfig`` will load it."""
    model = config.actor_rollout_ref.model
    if _path_fault(model.path) or not is_local(model.path):
        return
    key = "tokenizer_path" if model.get("tokenizer_path") else "path"
    path = model[key]
    folder = local_path(path)
    if folder.is_dir() and not model.trust_remote_code and not any(any(folder.glob(name)) for name in VOCABULARIES):
        names = ", ".join(VOCABULARIES)
        yield f"{MODEL}.{key} is {path!r}, a folder without a vocabulary; expected one of {names} in it"
        return  # transformers 5 would silently build a tokenizer with an empty vocabulary
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # noqa: BLE001  each kind of tokenizer raises different errors
        yield f"{MODEL}.{key} is {path!r}; {_EXPECTED} tokenizer ({_first_line(error)})"
        return
    if not (model.get("custom_chat_template") or tokenizer.chat_template):
        yield (
            f"{MODEL}.{key} is {path!r}, whose tokenizer has no chat template; set {MODEL}.custom_chat_template, or "
            "use an instruction-tuned model"
        )


def _path_fault(path: Any) -> str | None:
    """What is wrong with the model's name; None if it may be a folder, or a name on the Hub."""
    if not isinstance(path, str) or not path:
        return f"{MODEL}.path is {path!r}; expected a model's folder, or its name on the Hub"
    if os.path.isabs(path) and not os.path.isdir(path):
        return f"{MODEL}.path is {path!r}, {_absence(Path(path))}; expected a model's folder, or its name on the Hub"
    return None


def _model_config(config: DictConfig) -> Any:
    model = config.actor_rollout_ref.model
    return AutoConfig.from_pretrained(
        model.get("hf_config_path") or model.path, trust_remote_code=model.trust_remote_code
    )


def is_large_for_a_cpu(config: DictConfig) -> bool:
    """Whether the model has more than about :data:`LARGEST_ON_CPU` parameters; a model of the Hub also if unknown."""
    try:
        sizes = _model_config(config).get_text_config()
        layers = 12 * sizes.num_hidden_layers * sizes.hidden_size**2
        return layers + sizes.vocab_size * sizes.hidden_size > LARGEST_ON_CPU
    except Exception:  # noqa: BLE001  the check of the model shows it
        return re.fullmatch(r"[\w.-]+/[\w.-]+", str(config.actor_rollout_ref.model.path)) is not None


def weights_fault(folder: Path) -> str | None:
    """What is wrong with the weights in a model's folder, to follow the words "a folder"; None if nothing is."""
    files = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    if not files:
        return f"without weights; expected {' or '.join(WEIGHTS[::2])} in it"
    indices = [file for file in files if file.suffix == ".json" and file.is_file()]
    if not indices and all(SHARD.search(file.name) for file in files):
        return f"with {files[0].name}, and without the index of its parts, {WEIGHTS[1]}; download it again"
    for index in indices:
        try:
            files += [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"whose {index.name} has no weight_map; download it again"
    for file in files:
        if not file.is_file():
            return f"whose {file.name} is missing; download it again"
        with file.open("rb") as opened:
            start = opened.read(len(LFS))
        if not start or start == LFS:
            return f"whose {file.name} is {'a pointer of Git LFS: git lfs pull fetches it' if start else 'empty'}"
        if file.suffix == ".safetensors" and (fault := _cut_off(file)):
            return f"whose {file.name} is broken or cut off ({fault}); download or copy it again"
    return None


def _cut_off(file: Path) -> str | None:
    """What is wrong with a safetensors file by its header, such as the length; None if nothing is. Reads no weights."""
    try:
        with safe_open(file, framework="pt"):
            return None
    except (OSError, SafetensorError) as error:
        return _first_line(error)


def folder_faults(config: DictConfig) -> Iterator[str]:
    """What is wrong with the folders that are written to: the training's, and those of libraries if it starts Ray."""
    folders = {key: folder for key in FOLDERS if (folder := OmegaConf.select(config, key)) and _is_folder(folder)}
    for key in WRITTEN:
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and is_local(value):
            folders[key] = str(Path(value).parent)
    if own_metrics := os.environ.get(LOCATION):
        folders[LOCATION] = str(Path(own_metrics).parent)
    for key, folder in folders.items():
        if fault := unwritable(local_path(folder)):
            yield f"{key} needs the folder {folder!r}, but {fault}; expected one that can be made and written to"
    if running(config) is None:
        yield from library_folder_faults(config)


def _is_folder(folder: Any) -> bool:
    return isinstance(folder, str) and folder != "" and "://" not in folder


def _outputs(config: DictConfig) -> Iterator[str]:
    folders = {key: OmegaConf.select(config, key) for key in FOLDERS}
    for key, folder in folders.items():
        is_optional = key != FOLDERS[0]
        if not _is_folder(folder) and not (folder is None and is_optional):
            yield f"{key} is {folder!r}; expected a folder of this machine"
    own_metrics, folder = os.environ.get(LOCATION), folders[FOLDERS[0]]
    yield from _metrics(config, Path(own_metrics) if own_metrics else folder if _is_folder(folder) else None)


def _metrics(config: DictConfig, place: Path | str | None) -> Iterator[str]:
    """What verl's loggers would refuse after an earlier training's metrics have been moved or deleted."""
    given = config.trainer.logger
    names = _names(given)
    known = [*Tracking.supported_backend, "tracking"]
    if not names or any(name not in known for name in names):
        yield f"trainer.logger is {given!r}; expected one or a list of {', '.join(known)}"
    if place is not None:
        file = place if isinstance(place, Path) else Path(place) / "metrics.jsonl"
        if os.path.exists(file) and not (file.is_file() and os.access(file, os.W_OK)):
            yield f"the metrics go to {str(file)!r}, which is not a file that can be written; set {LOCATION} to another"


def _resumption(config: DictConfig) -> Iterator[str]:
    trainer = config.trainer
    if trainer.resume_mode not in ("auto", "disable", "resume_path"):
        yield f"trainer.resume_mode is {trainer.resume_mode!r}; expected auto, disable or resume_path"
    if trainer.resume_mode == "auto" and isinstance(trainer.default_local_dir, str) and trainer.default_local_dir:
        yield from _latest(local_path(trainer.default_local_dir))
    if trainer.resume_mode != "resume_path":
        return
    path = trainer.resume_from_path
    if not isinstance(path, str) or not path.rpartition("global_step_")[2].rstrip("/").isdigit():
        yield f"trainer.resume_from_path is {path!r}; expected a folder whose name is global_step_N"
    elif running(config) is None and not local_path(path).is_dir():
        yield f"trainer.resume_from_path is {path!r}, {_absence(local_path(path))}; expected a checkpoint's folder"
    elif running(config) is None and not (local_path(path) / "actor").is_dir():
        yield f"trainer.resume_from_path is {path!r}, which has no folder 'actor'; expected a checkpoint's folder"


def _latest(folder: Path) -> Iterator[str]:
    """A faulty record of the last checkpoint, or one of a checkpoint that is gone: verl would start over."""
    record = Path(get_checkpoint_tracker_filename(str(folder)))
    if not record.is_file():
        return
    step = record.read_bytes().decode(errors="replace").strip()
    if not step.isdigit():
        fault = f"has {step!r} instead of a step"
    elif not (folder / f"global_step_{step}").is_dir():
        fault = f"names step {step}, and there is no folder global_step_{step}"
    else:
        return
    yield (
        f"trainer.resume_mode is 'auto', but {record} {fault}; write the step of an existing checkpoint into it, or "
        "set trainer.resume_mode=disable to start over"
    )


def is_local(name: str) -> bool:
    """Whether a name is a path on this machine or a name on the Hub, and not a URL."""
    return "://" not in name or name.startswith("file://")


def local_path(name: str) -> Path:
    """The path of a file of this machine."""
    return Path(name.removeprefix("file://")).expanduser()


def _absence(path: Path) -> str:
    """Why a path cannot be used."""
    if path.is_symlink() and not path.exists():
        return "a link to something that does not exist"
    return "which is a folder" if path.is_dir() else "which is a file" if path.exists() else "which does not exist"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
