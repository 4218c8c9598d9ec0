"""JSON-lines files with any characters, for the tests of what reads them."""

import json

#: Characters at which ``str.splitlines`` breaks, and JSON may hold as they are.
BREAKS = ["\u2028", "\u2029", "\x85"]


def write(path, entries, ensure_ascii=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry, ensure_ascii=ensure_ascii) + "\n" for entry in entries]
    path.write_text("".join(lines), encoding="utf-8")
