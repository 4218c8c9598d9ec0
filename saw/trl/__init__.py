"""SAW in TRL: a ``GRPOTrainer`` whose advantages are those of any method (docs/trl.md).

:mod:`~saw.trl.trainer` is the trainer, :mod:`~saw.trl.settings` checks its arguments, and :mod:`~saw.trl.run_log`
writes what ``saw report`` reads.
"""

from saw.trl.version import check_version

check_version()

from saw.trl.trainer import SawGRPOTrainer  # noqa: E402  an old TRL fails on import, with a less helpful error

__all__ = ["SawGRPOTrainer"]
