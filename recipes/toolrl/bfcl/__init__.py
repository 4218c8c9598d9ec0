"""BFCL v4 for models trained on ToolRL's data.

Runs in BFCL's own environment (``scripts/setup.sh --bfcl``), whose pins collide with verl's: nothing in here may import
torch or verl. What both sides use, :mod:`~recipes.toolrl.bfcl.dialogue`, :mod:`~recipes.toolrl.bfcl.results`,
:mod:`saw.records.files` and :mod:`recipes.common.sampling`, imports the standard library only.
"""
