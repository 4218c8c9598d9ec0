"""BFCL v4 for models trained on ToolRL's data.

Runs in BFCL's own environment (scripts/setup_bfcl.sh), whose pins collide with verl's: nothing in here may import
``saw``, torch or verl, but :mod:`~recipes.toolrl.bfcl.dialogue`, which imports nothing, is used from both sides.
"""
