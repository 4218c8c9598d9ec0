"""Makes the trainer switch methods every few steps; loaded as the reward-function file.

One run then covers several methods in turn, on one machine and one model: for the benchmark of step times and the
end-to-end test of every method. The trainer loads the file when it checks its configuration. The plan comes from the
environment: ``SAW_PLAN`` is a JSON list of [method, options], and ``SAW_PLAN_STEPS`` the number of steps before the
next method takes over; after the last one, the plan starts again.

If any of the methods needs gradients, the training must be started with one that does (``saw.method=gradient_grpo``).
"""

import json
import os

from saw.verl.config import Settings
from saw.verl.reward_functions import toolrl
from saw.verl.trainer import SAWTrainer

__all__ = ["toolrl"]

_PLAN = json.loads(os.environ.get("SAW_PLAN", "[]"))
_STEPS = int(os.environ.get("SAW_PLAN_STEPS", "1"))
_begin = SAWTrainer.on_step_begin


def _take_the_method_of_the_step(self):
    _begin(self)
    method, options = _PLAN[(self.global_steps - 1) // _STEPS % len(_PLAN)]
    section = self.settings.model_dump() | {"method": method, "options": options}
    section["objectives"] = list(section["objectives"])
    section["objectives"][0]["minimum"] = "running" if "log_only" in options else None
    self.settings = Settings.model_validate(section)
    self.state.memory = {}  # of the method before


if _PLAN and "CHANGES_ITS_METHOD" not in vars(SAWTrainer):  # the file is loaded more than once
    SAWTrainer.CHANGES_ITS_METHOD = True  # type: ignore[attr-defined]
    SAWTrainer.on_step_begin = _take_the_method_of_the_step  # type: ignore[method-assign]
