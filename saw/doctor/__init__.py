"""Checks, before anything is started, whether the machine has what a training needs, and prints one table.

``bash scripts/doctor.sh experiment=toolrl saw.method=gdpo``. A check is a function that returns a :class:`Line`. It
gets the facts as arguments, so that a test can pass other ones.
"""

from saw.machine.line import Line, missing, ok, warning

__all__ = ["Line", "missing", "ok", "warning"]
