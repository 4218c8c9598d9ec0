"""Patches of verl and vLLM, one module each.

Each states the version and the reason, and has a contract test that fails when upstream changes.
"""
