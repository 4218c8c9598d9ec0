"""On-disk cache of verdicts.

The folder may be on a network file system, where SQLite's WAL mode does not work and locks between machines are
unreliable. So each machine writes its own file, and only reads those of the others. Locks work within one machine, so
its processes share a file, with the rollback journal. A machine whose name changes still reads its old file; at worst,
a question is paid for again.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import platform
import re
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

logger = logging.getLogger(__name__)


class Cache:
    """A table of verdicts by question. Unreadable entries are asked again; the first error is logged.

    Args:
        path (Path | None): the SQLite file; None disables the cache. It belongs to the machine that creates it; other
            machines write files beside it, with their names appended.
    """

    def __init__(self, path: Path | None):
        self.connection: sqlite3.Connection | None = None
        self._others: list[sqlite3.Connection] = []
        self._complained = False
        if path is None:
            return
        node = re.sub(r"[^\w.-]", "_", platform.node()) or "unnamed"
        of_node = path.with_name(f"{path.name}.node-{node}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._complain(error)
            return
        own = [path, of_node] if _owner(path, node) == node else [of_node]
        for file in own:  # the second is a fallback if the first is broken
            if self.connection is None:
                self.connection = self._open(file)
        for file in [path, *_of_nodes(path)]:
            if file.exists() and file not in own and (other := self._open(file, "ro")) is not None:
                self._others.append(other)

    @staticmethod
    def question(*parts: Any) -> str:
        """The key of a question: a hash of everything that its answer depends on."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def get(self, question: str) -> dict[str, Any] | None:
        """The cached value, or None; the caller checks that it is a verdict, and calls :meth:`forget` if not."""
        for connection in filter(None, (self.connection, *self._others)):
            # as bytes: text that is not UTF-8 would raise a database error, and the row would stay
            row = self._execute(connection, "SELECT CAST(verdict AS BLOB) FROM verdicts WHERE question = ?", question)
            if row is None:
                continue
            try:
                kept = json.loads(row[0])
            except (ValueError, TypeError, RecursionError):
                kept = None
            if isinstance(kept, dict):
                return kept
            self.forget(question)
        return None

    def put(self, question: str, scores: dict[str, int]) -> None:
        """Store scores, unless the question already has some."""
        self._execute(self.connection, "INSERT OR IGNORE INTO verdicts VALUES (?, ?)", question, json.dumps(scores))

    def forget(self, question: str) -> None:
        """Remove an entry that is not a verdict, so that the next answer is stored."""
        self._complain("a row does not hold a verdict")
        self._execute(self.connection, "DELETE FROM verdicts WHERE question = ?", question)

    def close(self) -> None:
        """Close the files; from then on nothing is found or stored."""
        for connection in filter(None, (self.connection, *self._others)):
            connection.close()
        self.connection, self._others = None, []

    def _open(self, file: Path, mode: str = "rwc") -> sqlite3.Connection | None:
        """A connection to a file with a table of verdicts; None if the file is not usable."""
        connection = None
        try:
            # this machine's file may be busy for a while; another machine's is not worth waiting for
            timeout = 1.0 if mode == "ro" else 30.0
            uri = f"{file.absolute().as_uri()}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)
            if mode != "ro":
                connection.execute("PRAGMA journal_mode=DELETE")
                # verdicts survive the end of the process, though not a power failure; waiting for the disk at every
                # verdict would delay the requests in flight
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute("CREATE TABLE IF NOT EXISTS verdicts (question TEXT PRIMARY KEY, verdict TEXT)")
            connection.execute("SELECT question, verdict FROM verdicts LIMIT 1").fetchone()
            return connection
        except sqlite3.Error as error:
            self._complain(f"{file}: {error}")
            if connection is not None:
                connection.close()
            return None

    def _execute(self, connection: sqlite3.Connection | None, statement: str, *values: str) -> Any:
        if connection is None:
            return None
        try:
            return connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            self._complain(error)
            return None

    def _complain(self, what: object) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("the judge's cache does not work, so questions are paid for again: %s", what)


def _owner(path: Path, node: str) -> str | None:
    """The name of the machine that owns a file: this one if it has no owner yet; None if unknown.

    Some shared file systems have no hard links; then no machine may claim the file.
    """
    owner = path.with_name(f"{path.name}.owner")
    draft = path.with_name(f"{path.name}.owner-{uuid4().hex}")
    try:
        if not owner.exists():
            draft.write_text(node)
            with suppress(FileExistsError):
                os.link(draft, owner)  # atomic: succeeds on one machine only, and includes the content
        return owner.read_text(errors="replace")
    except OSError:
        return None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _of_nodes(path: Path) -> list[Path]:
    found = path.parent.glob(f"{glob.escape(path.name)}.node-*")
    return sorted(file for file in found if not file.name.endswith(("-journal", "-wal", "-shm")))
