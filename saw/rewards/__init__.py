"""Reward functions. Each returns a dict of its objectives' values and their sum under ``score``."""
