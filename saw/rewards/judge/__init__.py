"""Rewards from an LLM judge: slow, paid for, sometimes absent and sometimes wrong.

``options.py`` what can be set, ``prompt.py`` what is sent, ``replies.py`` what counts as an answer, ``cache.py`` what
is not paid for twice, ``client.py`` the judge itself. Nothing here knows verl;
:mod:`saw.verl.judge_actor` runs it there.
"""

from saw.rewards.judge.client import Judge, Verdict
from saw.rewards.judge.options import JudgeOptions

__all__ = ["Judge", "JudgeOptions", "Verdict"]
