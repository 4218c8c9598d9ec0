"""BFCL v4 for models trained on ToolRL's data.

Runs in BFCL's own environment (``scripts/setup.sh --bfcl``), whose pins conflict with verl's: nothing here may import
torch or verl. The modules that both environments use, :mod:`~recipes.toolrl.bfcl.dialogue`,
:mod:`~recipes.toolrl.bfcl.results`, :mod:`saw.records.files` and :mod:`recipes.common.sampling`, import only the
standard library.
"""
