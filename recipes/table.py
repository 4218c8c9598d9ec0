"""Results over seeds and repeated evaluations."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

NOT_RUN = "not run"


@dataclass(frozen=True)
class Measurement:
    """One number, measured several times.

    Attributes:
        values (tuple[tuple[float, ...], ...]): for each seed, the value of each evaluation of its checkpoint.
    """

    values: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds, of the means over their evaluations."""
        return statistics.fmean(statistics.fmean(runs) for runs in self.values)

    @property
    def sd_seeds(self) -> float | None:
        """Sample standard deviation over the seeds; None where there is one."""
        return statistics.stdev(statistics.fmean(runs) for runs in self.values) if len(self.values) > 1 else None

    @property
    def sd_runs(self) -> float | None:
        """Sample standard deviation over the evaluations of one checkpoint, pooled over the seeds; None without."""
        spreads = [statistics.variance(runs) for runs in self.values if len(runs) > 1]
        return statistics.fmean(spreads) ** 0.5 if spreads else None

    def __str__(self) -> str:
        spread = f" ± {self.sd_seeds:.2f}" if self.sd_seeds is not None else ""
        within = f" ({self.sd_runs:.2f})" if self.sd_runs is not None else ""
        return f"{self.mean:.2f}{spread}{within}"
