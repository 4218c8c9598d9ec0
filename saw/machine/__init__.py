"""The machine: what it has, and what a training needs of it."""
