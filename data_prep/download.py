"""Fetch a file by URL, so that an interrupted transfer goes on where it stopped."""

from __future__ import annotations

import logging
from pathlib import Path

import requests

logger = logging.getLogger(__name__)

TIMEOUT = 60  # seconds without a byte


class DownloadFailed(RuntimeError):
    """The file could not be fetched; the message says what to do."""


def fetch(source: str, folder: Path) -> Path:
    """Give the local path of a file, downloading it into ``folder`` if ``source`` is a URL.

    What has arrived stays in ``<name>.part`` and is asked for no more; the name is given once all is there.

    Args:
        source (str): a path, or an http(s) address.
        folder (Path): where downloads go.

    Returns:
        Path: the file.

    Raises:
        DownloadFailed: without a network, or if the server refuses.
        FileNotFoundError: if a path does not exist.
    """
    if not source.startswith(("http://", "https://")):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{source}: there is no such file")
        return path
    target = folder / source.rsplit("/", 1)[1].partition("?")[0]
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _transfer(source, part)
    except requests.RequestException as error:
        raise DownloadFailed(
            f"could not fetch {source} ({type(error).__name__}: {error}); {part} keeps what has arrived. Run the same "
            "command again when there is a network, or fetch the file elsewhere and pass its path"
        ) from error
    part.rename(target)
    return target


def _transfer(url: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing was left to fetch
        response.raise_for_status()
        goes_on = response.status_code == requests.codes.partial_content
        expected = int(response.headers.get("Content-Length", -1))
        arrived = 0
        with part.open("ab" if goes_on else "wb") as file:
            for block in response.iter_content(1 << 16):
                arrived += file.write(block)
        if 0 <= arrived < expected:
            raise requests.ConnectionError(f"{arrived} of {expected} bytes arrived")
