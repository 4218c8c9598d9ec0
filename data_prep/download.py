"""Download a file completely, or not at all.

An interrupted download starts again from the beginning. Resuming it would need a validator that many servers do not
send: without one, the two parts may come from different versions. The data sets here are small.
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
    """A failed download; the message tells what to do."""


def fetch(source: str, folder: Path) -> Path:
    """Return the local path of a file, downloading it into ``folder`` if ``source`` is a URL.

    A file that was already downloaded from the same URL is not downloaded again: remove it to get the current one. The
    file gets its final name when it is complete, and replaces a file from another source.

    Args:
        source (str): a path, or an http(s) address.
        folder (Path): folder for downloads.

    Returns:
        Path: the file.

    Raises:
        DownloadFailed: without a network, if the server refuses, or if the file arrives incomplete.
        FileNotFoundError: if a path does not exist.
    """
    if not source.lower().startswith(("http://", "https://")):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{source}: there is no such file")
        return path
    name = Path(unquote(urlsplit(source).path.rpartition("/")[2])).name
    if name in ("", ".."):
        raise DownloadFailed(f"{source} does not name a file; expected an address like https://host/folder/rows.json")
    target = folder / name
    # Only a checksum of the address is stored, because the address may contain a key.
    origin, address = target.with_name(f"{name}.origin"), hashlib.sha256(source.encode()).hexdigest()
    if target.is_file() and origin.is_file() and origin.read_text() == address:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f"{name}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _transfer(source, file)
        origin.unlink(missing_ok=True)  # in this order, it never describes another file
        os.replace(part, target)
        origin.write_text(address)
    except (requests.RequestException, OSError) as error:
        raise DownloadFailed(
            f"could not download {source} ({type(error).__name__}: {error}). Run the same command again when there is "
            "a network, or download the file elsewhere and pass its path"
        ) from error
    finally:
        Path(part).unlink(missing_ok=True)
    return target


def _transfer(url: str, file: IO[bytes]) -> None:
    # Uncompressed, so that Content-Length is the length of the file.
    with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as response:
        response.raise_for_status()
        if response.status_code != requests.codes.ok:
            raise requests.ConnectionError(f"status {response.status_code}; expected 200")
        for block in response.iter_content(1 << 16):
            file.write(block)
        arrived, expected = response.raw.tell(), response.headers.get("Content-Length")
        if expected is not None and arrived != int(expected):
            raise requests.ConnectionError(f"{arrived} of {expected} bytes arrived")
        if expected is None and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            logger.warning("%s: the server sent no length, so the file may be incomplete", url)
