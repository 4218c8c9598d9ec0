"""What the machine has, and what a training needs from it."""
