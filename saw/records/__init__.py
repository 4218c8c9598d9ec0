"""The files that a run writes: metrics, sampled answers, and its configuration and provenance."""
