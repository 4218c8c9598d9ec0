"""A training's reward function, whose file has the trainer take another method each two steps.

So that one start of the pipeline sees them all. The trainer reads the file when it checks its configuration.
"""

from saw.verl.reward_functions import toolrl
from saw.verl.settings import Settings
from saw.verl.trainer import SAWTrainer

__all__ = ["PLANS", "toolrl"]

#: (method, options), two steps each.
PLANS: list[tuple[str, dict]] = [
    *((method, {}) for method in ("random_grpo", "random_gdpo", "mo_grpo", "dvao")),
    ("static_grpo", {"static_weights": [1, 3]}),
    ("static_gdpo", {"static_weights": [1, 3]}),
    *(("saw_gdpo", {"informativeness": name}) for name in ("normalised_variance", "range_std", "advantage_entropy")),
    ("saw_grpo", {"informativeness": "group_spread", "over": "group"}),
    ("saw_grpo", {"ema": 0.5, "floor": 0.2, "max_change": 0.1}),
    ("saw_gdpo", {"log_only": True}),
]
_begin = SAWTrainer.on_step_begin


def _take_the_plan_of_the_step(self):
    _begin(self)
    method, options = PLANS[(self.global_steps - 1) // 2]
    section = self.settings.model_dump() | {"method": method, "options": options}
    section["objectives"] = list(section["objectives"])
    section["objectives"][0]["minimum"] = "running" if "log_only" in options else None
    self.settings = Settings.model_validate(section)


if "PLANS_ARE_TAKEN" not in vars(SAWTrainer):  # the file is read more than once
    SAWTrainer.PLANS_ARE_TAKEN = True  # type: ignore[attr-defined]
    SAWTrainer.on_step_begin = _take_the_plan_of_the_step  # type: ignore[method-assign]
