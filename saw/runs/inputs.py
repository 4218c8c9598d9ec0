"""Checks what a training reads and writes, before files of an earlier training are touched.

verl finds most of these faults minutes later, when Ray and the models are up. If the training joins a running Ray
cluster, its nodes may have files that this machine does not: a fault in what is read is then only a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoTokenizer

from saw.machine.cluster import running
from saw.rewards import JUDGE
from saw.verl.config import ConfigError

logger = logging.getLogger(__name__)

MODEL = "actor_rollout_ref.model"
#: Keys that name a file, or a packaged module by ``pkg://``; the reward function's has its own check, which loads it.
FILES = (
    "data.custom_cls.path",
    "data.sampler.class_path",
    "actor_rollout_ref.rollout.router_config_path",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path",
    "actor_rollout_ref.rollout.multi_turn.tool_config_path",
    "actor_rollout_ref.rollout.multi_turn.function_tool_path",
    "trainer.v1.sampler.custom_sampler.path",
)
#: Keys that name a folder to write to, and keys that name a file.
FOLDERS = ("trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir")
WRITTEN = (f"{JUDGE}.cache", f"{JUDGE}.faults")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
#: Every tokenizer has one of these files, unless it needs the model's own code.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")


def check(config: DictConfig) -> None:
    """Check everything that the training reads or writes.

    Args:
        config (DictConfig): verl's whole configuration, with absolute paths (:func:`saw.runs.handover.settle`).

    Raises:
        ConfigError: one line per fault, with the key, the value and what is expected.
    """
    written = [*_outputs(config), *_resumption(config)]
    read = [*_files(config), *_data(config), *_model(config)]
    address = running(config)
    if address is not None and read:
        for fault in read:
            logger.warning("%s (seen from here; the nodes of the Ray cluster at %s may have it)", fault, address)
        read = []
    if faults := [*written, *read]:
        raise ConfigError("\n".join(faults))


def _files(config: DictConfig) -> Iterator[str]:
    for key in FILES:
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and value and _is_local(value) and not _path(value).is_file():
            yield f"{key} is {value!r}, which does not exist; expected a file"


def _data(config: DictConfig) -> Iterator[str]:
    if OmegaConf.select(config, "data.custom_cls.path"):
        return  # that class decides which files it reads, and how
    for key, most in (("data.train_files", "train_max_samples"), ("data.val_files", "val_max_samples")):
        value = OmegaConf.select(config, key)
        names = [value] if isinstance(value, str) else list(value or [])
        if not names:
            yield f"{key} is {value!r}; expected at least one file of rows"
        rows: int | None = 0
        for name in names:
            fault, number = _rows(config, key, name)
            if fault is not None:
                yield fault
            rows = None if rows is None or number is None else rows + number
        limit = config.data.get(most, -1)
        if key == "data.train_files" and rows:
            rows = min(rows, limit) if limit > 0 else rows
            if rows < config.data.train_batch_size:
                yield (
                    f"data.train_batch_size is {config.data.train_batch_size}, and {key} has {rows} rows; "
                    "expected enough for one step"
                )


def _rows(config: DictConfig, key: str, name: str) -> tuple[str | None, int | None]:
    """What is wrong with a data file (None: nothing), and its number of rows (None: unknown)."""
    path = _path(name)
    if not _is_local(name):
        return None, None
    if not path.is_file():
        return f"{key} has {name!r}, which does not exist; expected a file of rows", None
    if path.suffix not in (".parquet", ".json", ".jsonl"):
        return f"{key} has {name!r}; expected .parquet, .json or .jsonl, the formats that verl reads", None
    try:
        if path.suffix != ".parquet":
            return (f"{key} has {name!r}, which has no rows" if not path.read_bytes().strip() else None), None
        parquet = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        return f"{key} has {name!r}, which can't be read ({_first_line(error)}); expected a file of rows", None
    wanted = [config.data.get("prompt_key", "prompt")]
    if config.reward.reward_manager.source == "register":
        wanted += ["data_source", "reward_model"]  # read by verl's reward managers and ours
    columns = parquet.schema_arrow.names
    if absent := [column for column in wanted if column not in columns]:
        return f"{key} has {name!r} without {', '.join(absent)}; its columns are {', '.join(columns)}", None
    rows = parquet.metadata.num_rows
    return (None if rows else f"{key} has {name!r}, which has no rows"), rows


def _model(config: DictConfig) -> Iterator[str]:
    """Load here what verl's ``HFModelConfig`` will load."""
    model = config.actor_rollout_ref.model
    if not _is_local(model.path):
        return
    if os.path.isabs(model.path) and not os.path.isdir(model.path):
        yield f"{MODEL}.path is {model.path!r}, which does not exist; expected a model's folder, or its name on the Hub"
        return
    trust = {"trust_remote_code": model.trust_remote_code}
    source = {key: model.get(key) or model.path for key in ("hf_config_path", "tokenizer_path")}
    named = {key: f"{MODEL}.{key if model.get(key) else 'path'}" for key in source}
    expected = "expected a folder, or a model of the Hub (OWNER/NAME), with a"
    try:
        AutoConfig.from_pretrained(source["hf_config_path"], **trust)
    except (OSError, ValueError) as error:
        key, path = named["hf_config_path"], source["hf_config_path"]
        yield f"{key} is {path!r}; {expected} config.json ({_first_line(error)})"
    folder = _path(model.path)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        yield f"{MODEL}.path is {model.path!r}, a folder without weights; expected {' or '.join(WEIGHTS[::2])} in it"
    key, path = named["tokenizer_path"], source["tokenizer_path"]
    folder = _path(path)
    if folder.is_dir() and not model.trust_remote_code and not any(any(folder.glob(name)) for name in VOCABULARIES):
        yield f"{key} is {path!r}, a folder without a vocabulary; expected one of {', '.join(VOCABULARIES)} in it"
        return  # transformers 5 silently makes a tokenizer without words from it
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **trust)
    except Exception as error:  # noqa: BLE001  each kind of tokenizer raises different errors
        yield f"{key} is {path!r}; {expected} tokenizer ({_first_line(error)})"
        return
    if not (model.get("custom_chat_template") or tokenizer.chat_template):
        yield (
            f"{key} is {path!r}, whose tokenizer has no chat template; set {MODEL}.custom_chat_template, or use an "
            "instruction-tuned model"
        )


def _outputs(config: DictConfig) -> Iterator[str]:
    folders = {key: OmegaConf.select(config, key) for key in FOLDERS}
    for key in WRITTEN:
        value = OmegaConf.select(config, key)
        folders[key] = str(Path(value).parent) if isinstance(value, str) else None
    if metrics := os.environ.get("VERL_FILE_LOGGER_PATH"):
        folders["VERL_FILE_LOGGER_PATH"] = str(Path(metrics).parent)
    for key, folder in folders.items():
        if isinstance(folder, str) and _is_local(folder) and (fault := _unwritable(_path(folder))):
            yield f"{key} needs the folder {folder!r}, but {fault}; expected one that can be made and written to"


def _unwritable(folder: Path) -> str | None:
    """Why a folder can't be made, or written to; None if it can."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def _resumption(config: DictConfig) -> Iterator[str]:
    trainer = config.trainer
    if trainer.resume_mode not in ("auto", "disable", "resume_path"):
        yield f"trainer.resume_mode is {trainer.resume_mode!r}; expected auto, disable or resume_path"
    if trainer.resume_mode != "resume_path":
        return
    path = trainer.resume_from_path
    if not isinstance(path, str) or not path.rpartition("global_step_")[2].rstrip("/").isdigit():
        yield f"trainer.resume_from_path is {path!r}; expected a folder whose name is global_step_N"
    elif running(config) is None and not _path(path).is_dir():
        yield f"trainer.resume_from_path is {path!r}, which does not exist; expected a checkpoint's folder"


def _is_local(name: str) -> bool:
    return "://" not in name or name.startswith("file://")


def _path(name: str) -> Path:
    return Path(name.removeprefix("file://")).expanduser()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
