"""Data for the experiments, in verl's row schema."""
