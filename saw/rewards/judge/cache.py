"""Verdicts that were paid for, on disk.

Each machine writes a file of its own and only reads those of the others, since the folder may be shared over a network
file system: SQLite's WAL mode does not work there at all, and locks between machines cannot be relied on. On one
machine they can, so its processes share a file, with the rollback journal. A machine under a new name finds what the
old one has written; the most that can go wrong is that a question is paid for again.
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
    """A table of verdicts by question. What cannot be read or written is asked again, and said once.

    Args:
        path (Path | None): the SQLite file; None keeps nothing. It belongs to the machine that makes it, and the file
            of another machine lies beside it, with that machine's name added.
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
        for file in own:  # the second is for the case that the first is broken
            if self.connection is None:
                self.connection = self._open(file)
        for file in [path, *_of_nodes(path)]:
            if file.exists() and file not in own and (other := self._open(file, "ro")) is not None:
                self._others.append(other)

    @staticmethod
    def question(*parts: Any) -> str:
        """The key of a question: of all that its answer depends on."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def get(self, question: str) -> dict[str, Any] | None:
        """What was kept, or None; the caller sees whether it is a verdict, and calls :meth:`forget` if it is none."""
        for connection in filter(None, (self.connection, *self._others)):
            # as bytes: text that is no UTF-8 would be an error of the database, and the row would stay
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
        """Keep scores; the first that were given stand."""
        self._execute(self.connection, "INSERT OR IGNORE INTO verdicts VALUES (?, ?)", question, json.dumps(scores))

    def forget(self, question: str) -> None:
        """Remove what is no verdict, so that the next answer is kept."""
        self._complain("a row holds no verdict")
        self._execute(self.connection, "DELETE FROM verdicts WHERE question = ?", question)

    def close(self) -> None:
        """Close the files; nothing is found or kept from then on."""
        for connection in filter(None, (self.connection, *self._others)):
            connection.close()
        self.connection, self._others = None, []

    def _open(self, file: Path, mode: str = "rwc") -> sqlite3.Connection | None:
        """A connection to a file with a table of verdicts; None if it is none."""
        connection = None
        try:
            # one's own file may be busy for a while; that of another machine is not worth a wait
            timeout = 1.0 if mode == "ro" else 30.0
            uri = f"{file.absolute().as_uri()}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)
            if mode != "ro":
                connection.execute("PRAGMA journal_mode=DELETE")
                # what is written outlives the process; only a machine that loses its power may lose it, and waiting
                # for the disk at every verdict would hold up the requests in flight
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
    """The name of the machine that a file belongs to: this one's, if it has none yet; None where nobody can tell.

    Some shared file systems have no hard links, and then no machine may take the file for its own.
    """
    owner = path.with_name(f"{path.name}.owner")
    draft = path.with_name(f"{path.name}.owner-{uuid4().hex}")
    try:
        if not owner.exists():
            draft.write_text(node)
            with suppress(FileExistsError):
                os.link(draft, owner)  # with its content at once, and on one machine only
        return owner.read_text(errors="replace")
    except OSError:
        return None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _of_nodes(path: Path) -> list[Path]:
    found = path.parent.glob(f"{glob.escape(path.name)}.node-*")
    return sorted(file for file in found if not file.name.endswith(("-journal", "-wal", "-shm")))
