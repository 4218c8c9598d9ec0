"""Dialogues of two turns with a calculator (docs/turns.md)."""
