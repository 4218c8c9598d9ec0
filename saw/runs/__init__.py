"""Runs: start one, follow it, and keep what it was."""
