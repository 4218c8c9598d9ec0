"""What a training needs of its machine, and whether it is there: one table, before anything is started.

``bash scripts/doctor.sh experiment=toolrl saw.method=gdpo``. A check is a function that returns a :class:`Line`, and
takes what it looks at as arguments, so that a test can break it.
"""

from saw.doctor.lines import Line, missing, ok, warning

__all__ = ["Line", "missing", "ok", "warning"]
