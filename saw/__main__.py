"""``python -m saw`` is the command ``saw``."""

from saw.cli import app

app(prog_name="saw")
