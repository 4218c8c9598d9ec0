"""Composes, starts and follows a training run."""
