"""Records the CPU time that this process spends on imports; put on PYTHONPATH by benchmarks.start.

Only the outermost import of each thread is timed, so nothing is counted twice. The file holds the sum so far.
"""

import importlib._bootstrap as bootstrap
import os
import threading
import time

_folder = os.environ.get("SAW_IMPORT_CLOCK")
_inside = threading.local()
_total = 0.0
_written = 0.0
_find_and_load = bootstrap._find_and_load


def _timed(name, import_):
    global _total, _written
    if getattr(_inside, "it", False):
        return _find_and_load(name, import_)
    _inside.it = True
    started = time.thread_time()
    try:
        return _find_and_load(name, import_)
    finally:
        _inside.it = False
        _total += time.thread_time() - started
        if _total - _written > 0.05:
            _written = _total
            with open(os.path.join(_folder, str(os.getpid())), "w") as file:
                file.write(f"{_total:.3f}")


def _forget():
    global _total, _written
    _total = _written = 0.0


if _folder:
    os.register_at_fork(after_in_child=_forget)  # a fork starts at 0, as its CPU time does
    bootstrap._find_and_load = _timed
