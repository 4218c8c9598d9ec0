"""Names that verl, its configuration and this plug-in share. Imports nothing."""

#: Name of the trainer, the estimator, the reward manager, and the section of the configuration.
NAME = "saw"
#: SAW's trainers, by their ``trainer.v1.trainer_mode`` -> the mode of the underlying trainer of verl.
MODES = {NAME: "sync", f"{NAME}_colocate_async": "colocate_async", f"{NAME}_separate_async": "separate_async"}
#: verl's agent loop of one turn, and the same with a seed in each request.
SINGLE_TURN, SEEDED = "single_turn_agent", "seeded_single_turn_agent"
#: The variable that is 1 in all processes of a training that uses SAW; the check of its configuration sets it.
ACTIVE = "SAW_ACTIVE"
#: Names of the scalar in a reward function's dict, not an objective: verl reads ``score`` and adds ``reward``.
SCALARS = frozenset({"score", "reward"})
#: The key with which the reward manager marks whether the reward function failed: 1 or 0.
FAILED = "saw_failed"
#: Keys of that dict that are not objectives.
RESERVED_NAMES = ("score", "reward", FAILED)
#: verl's column for a number of rollouts per prompt.
ROLLOUTS = "__rollout_n__"
#: Where the reward function's arguments are set.
KWARGS = "reward.custom_reward_function.reward_kwargs"
