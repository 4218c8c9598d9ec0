"""Tables, figures, a page and dashboards from the logs of trainings.

    python -m saw.report RUN... --out report

:mod:`~saw.report.history` reads a run, :mod:`~saw.report.selection` chooses which runs count,
:mod:`~saw.report.seed_statistics` has the statistics, :mod:`~saw.report.figures`, :mod:`~saw.report.page` and
:mod:`~saw.report.dashboard` show them.
"""

from saw.report.figures import plot_curves
from saw.report.history import History, read_history, read_run, step_line, summary_table

__all__ = ["History", "plot_curves", "read_history", "read_run", "step_line", "summary_table"]
