"""Run a command's module as ``python -m`` would; another version of verl ends it with one message, and no log of it.

python -m saw.command MODULE [ARGUMENTS]
"""

from __future__ import annotations

import logging
import runpy
import sys


def run() -> None:
    """Become the module, with the arguments that follow its name.

    Raises:
        SystemExit: the module's own, or with the message if another version of verl is installed.
    """
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except ImportError as error:
        from saw.faults import WrongVersion  # only now: pydantic, which most commands do not need

        if not isinstance(error, WrongVersion):
            raise
        raise SystemExit(f"saw: {error}") from None


if __name__ == "__main__":
    # The plug-in logs its error too, because verl swallows it; here it is shown as the message.
    logging.getLogger("saw.verl.version").addFilter(lambda record: record.levelno < logging.ERROR)
    run()
