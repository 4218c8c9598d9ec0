"""Rewards from an LLM judge, which is slow, costs money, and may fail to answer or be wrong.

``options.py``: the settings. ``prompt.py``: the prompt. ``replies.py``: reads scores from replies. ``cache.py``: keeps
verdicts, so that none is paid for twice. ``client.py``: the judge itself. Nothing here imports verl;
:mod:`saw.verl.judge_actor` runs the judge in verl.
"""

from saw.rewards.judge.client import Judge, Verdict
from saw.rewards.judge.options import JudgeOptions

__all__ = ["Judge", "JudgeOptions", "Verdict"]
