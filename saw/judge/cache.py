"""Verdicts that were paid for, on disk; several processes may share the file."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Cache:
    """A table of verdicts by question. What cannot be read or written is asked again, and said once.

    Args:
        path (Path | None): the SQLite file; None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self.connection: sqlite3.Connection | None = None
        self._complained = False
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("CREATE TABLE IF NOT EXISTS verdicts (question TEXT PRIMARY KEY, verdict TEXT)")

    @staticmethod
    def question(*parts: Any) -> str:
        """The key of a question: of all that its answer depends on."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def get(self, question: str) -> dict[str, int] | None:
        """The scores that were given, or None."""
        row = self._execute("SELECT verdict FROM verdicts WHERE question = ?", question)
        return json.loads(row[0]) if row else None

    def put(self, question: str, scores: dict[str, int]) -> None:
        """Keep scores; the first that were given stand."""
        self._execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", question, json.dumps(scores))

    def _execute(self, statement: str, *values: str) -> Any:
        if self.connection is None:
            return None
        try:
            return self.connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            if not self._complained:
                self._complained = True
                logger.warning("the judge's cache does not work, so questions are paid for again: %s", error)
            return None
