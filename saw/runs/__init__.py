"""Runs: compose one, start it, follow it."""
