"""The Hugging Face Hub: whether it answers, and which files of a model are in this machine's cache of it.

huggingface_hub tries for half a minute to get a file that is not in the cache, and each library needs several files.
So the Hub is called once, before any of them. If it does not answer, they all use only the cache.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

#: A model has one of these files; an index names further ones.
WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
#: The variable with which all of these libraries use the cache only.
OFFLINE = "HF_HUB_OFFLINE"
#: Statuses that mean "not available", from a proxy or the server; huggingface_hub tries again.
UNAVAILABLE = (502, 503, 504)

Lookup = Callable[[str, str], str | None]


def reach(address: str, limit: float) -> None:
    """Call a server; accepts any answer except "not available".

    Args:
        address (str): its URL.
        limit (float): seconds for the whole call; requests' own timeout applies per address of a server.

    Raises:
        OSError: if there is no answer.
    """
    import requests

    faults: list[OSError] = []

    def call() -> None:
        """Call it once, and keep what went wrong: an exception would end in this thread."""
        try:
            status = requests.head(address, timeout=limit).status_code
            if status in UNAVAILABLE:
                faults.append(ConnectionError(f"it answers with the status {status}"))
        except OSError as error:
            reason = getattr(error.args[0] if error.args else None, "reason", None)  # urllib3's, below its retries
            text = str(reason or error)
            faults.append(ConnectionError(text.partition("): ")[2] or text))

    calling = threading.Thread(target=call, daemon=True)
    calling.start()
    calling.join(limit)
    if calling.is_alive():
        raise TimeoutError(f"no answer within {limit:g} s")
    if faults:
        raise faults[0]


def limit() -> float:
    """Seconds for the Hub to answer: ``HF_HUB_ETAG_TIMEOUT``, huggingface_hub's own limit for one file (10)."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_ETAG_TIMEOUT)


@functools.cache
def fault() -> str | None:
    """Why the Hub does not answer, tried only once; None if it does."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{OFFLINE} is set"
    try:
        reach(constants.ENDPOINT, limit())
    except OSError as error:
        text = " ".join(str(error).split())
        return f"{constants.ENDPOINT}: {text[:160]}{'...' if text[160:] else ''}"
    return None


def use_cache_only(children: bool = True) -> None:
    """Make every library use only the cache.

    Args:
        children (bool): also in the processes that this one starts.
    """
    from huggingface_hub import constants

    if children:
        os.environ[OFFLINE] = "1"
    constants.HF_HUB_OFFLINE = True  # it may have been imported before
    if "datasets" in sys.modules:  # it has a copy
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def unreachable(names: Iterable[Any], children: bool = True) -> str | None:
    """If a model is on the Hub and the Hub does not answer, use only its cache; why it does not answer, else None.

    Args:
        names (Iterable[Any]): folders, names on the Hub, or anything else; without a name on the Hub, it isn't called.
        children (bool): whether the processes that this one starts use only the cache too.
    """
    if not any(map(is_on_hub, names)) or fault() is None:
        return None
    use_cache_only(children)
    return fault()


def is_on_hub(name: Any) -> bool:
    """Whether a model is on the Hub, not in a folder."""
    return isinstance(name, str) and is_hub_name(name) and not Path(name).expanduser().is_dir()


def is_hub_name(name: str) -> bool:
    """Whether a string may be a model's name on the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith(("runs/", ".")) and name.count("/") <= 1


def in_cache(repository: str, file: str) -> str | None:
    """The path of a Hub's file in this machine's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file)
    return path if isinstance(path, str) else None


def absent_files(find: Callable[[str], str | None], read: bool = True) -> list[str]:
    """The files that a model lacks.

    Args:
        find (Callable[[str], str | None]): gives the path of a file, None if it does not exist.
        read (bool): open the index of sharded weights, and look for each of its files.
    """
    absent = [] if find("config.json") else ["config.json"]
    name = next((name for name in WEIGHTS if find(name)), None)
    if name is None:
        return [*absent, "model.safetensors"]
    if read and name.endswith(".index.json"):
        try:
            parts = sorted(set(json.loads(Path(str(find(name))).read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [*absent, f"a whole {name}"]
        absent += [part for part in parts if not find(part)]
    return absent
