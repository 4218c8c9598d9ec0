"""Fetch a file by URL: all of it, as it is now at its source, or nothing.

A transfer that was interrupted begins anew. To go on with it would take a validator that many servers do not give, or
what came before and what comes after may be of two versions; the data sets that are fetched here are small.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import requests

logger = logging.getLogger(__name__)

TIMEOUT = 60  # seconds without a byte


class DownloadFailed(RuntimeError):
    """The file could not be fetched; the message says what to do."""


def fetch(source: str, folder: Path) -> Path:
    """Give the local path of a file, downloading it into ``folder`` if ``source`` is a URL.

    A file that was fetched from the same URL before is not fetched again: remove it to get what is there now. The
    file gets its name once all of it is there, and replaces one that came from elsewhere.

    Args:
        source (str): a path, or an http(s) address.
        folder (Path): where downloads go.

    Returns:
        Path: the file.

    Raises:
        DownloadFailed: without a network, if the server refuses, or if not all of the file arrives.
        FileNotFoundError: if a path does not exist.
    """
    if not source.lower().startswith(("http://", "https://")):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{source}: there is no such file")
        return path
    name = Path(unquote(urlsplit(source).path.rpartition("/")[2])).name
    if name in ("", ".."):
        raise DownloadFailed(f"{source} names no file; expected an address like https://host/folder/rows.json")
    target = folder / name
    # The address's checksum, as the address may hold a key.
    origin, address = target.with_name(f"{name}.origin"), hashlib.sha256(source.encode()).hexdigest()
    if target.is_file() and origin.is_file() and origin.read_text() == address:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f"{name}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _transfer(source, file)
        origin.unlink(missing_ok=True)  # in this order, it never belongs to another file
        os.replace(part, target)
        origin.write_text(address)
    except (requests.RequestException, OSError) as error:
        raise DownloadFailed(
            f"could not fetch {source} ({type(error).__name__}: {error}). Run the same command again when there is a "
            "network, or fetch the file elsewhere and pass its path"
        ) from error
    finally:
        Path(part).unlink(missing_ok=True)
    return target


def _transfer(url: str, file: IO[bytes]) -> None:
    # Uncompressed, so that the length is that of the file.
    with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as response:
        response.raise_for_status()
        if response.status_code != requests.codes.ok:
            raise requests.ConnectionError(f"status {response.status_code} where 200 is expected")
        for block in response.iter_content(1 << 16):
            file.write(block)
        arrived, expected = response.raw.tell(), response.headers.get("Content-Length")
        if expected is not None and arrived != int(expected):
            raise requests.ConnectionError(f"{arrived} of {expected} bytes arrived")
        if expected is None and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            logger.warning("%s: the server gave no length; nobody knows whether all of it arrived", url)
