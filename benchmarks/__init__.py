"""Timings; no tests."""
