"""What verl does with a sample that fails, and where the plug-in counts it."""

import inspect

import pytest
from verl.experimental.agent_loop import agent_loop
from verl.trainer.ppo import metric_utils
from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer, trainer_base
from verl.workers.config import FSDPActorConfig, McoreActorConfig, TorchTitanActorConfig, VeOmniActorConfig

from saw.verl import version
from saw.verl.names import ROLLOUTS


def test_a_session_that_fails_leaves_no_row():
    source = inspect.getsource(agent_loop_tq.AgentLoopWorkerTQ._run_prompt)
    assert f'prompt.pop("{ROLLOUTS}", config.n' in source
    assert 'status = "failure"' in source
    assert "failure" in inspect.getsource(replay_buffer.ReplayBuffer._sampleable_terminal_keys)


def test_every_prompt_of_a_step_is_submitted_through_one_method():
    for name in ("_add_prompts_to_generate", "_add_batch_to_generate"):
        source = inspect.getsource(getattr(trainer_base.PPOTrainer, name))
        assert "self._submit_batch_to_rollout(batch)" in source, name
    assert "self.agent_loop_manager.generate_sequences(batch)" in inspect.getsource(
        trainer_base.PPOTrainer._submit_batch_to_rollout
    )


def test_the_buffer_looks_at_who_generates_while_it_waits_and_verl_does_not():
    """saw/verl/agent_loops.py: nothing else ends the wait for a worker that has died."""
    wait = inspect.getsource(replay_buffer.ReplayBuffer._wait_for_next_poll)
    assert "ray" not in wait
    assert "self._wait_for_next_poll(" in inspect.getsource(replay_buffer.ReplayBuffer.sample)
    workers = inspect.getsource(agent_loop.AgentLoopManager._init_agent_loop_workers)
    assert "self.agent_loop_workers.append(" in workers
    assert "max_restarts" not in workers
    assert "ray.get(" in inspect.getsource(agent_loop_tq.AgentLoopManagerTQ.generate_sequences)
    assert "self.agent_loop_manager = agent_loop_manager" in inspect.getsource(trainer_base.PPOTrainer.fit)


def test_verl_s_mean_score_counts_a_sample_without_rewards_as_0():
    """saw/verl/step_metrics.py overwrites these three."""
    source = inspect.getsource(metric_utils.compute_data_metrics)
    for what in ("mean", "max", "min"):
        assert f'"critic/score/{what}": score_{what}' in source
    assert "metrics.update(compute_data_metrics(" in inspect.getsource(trainer_base.PPOTrainer._compute_metrics)


def test_the_buffer_selects_prompts_before_it_looks_whether_any_row_is_left():
    source = inspect.getsource(replay_buffer.ReplayBuffer.sample)
    selects = source.index("self._select_prompt_uids(")
    assert selects < source.index("no materializable trajectories")
    assert selects < source.index("self._materialize_batch(")


@pytest.mark.skipif(not version.VALIDATION_COUNTS_SAMPLES, reason="not in this verl")
def test_validation_says_how_many_samples_it_asked_for():
    source = inspect.getsource(trainer_base.PPOTrainer._validate)
    assert "expected_acc_counts[(str(data_source), str(uid))] = rollout_n" in source
    assert "expected_acc_counts=expected_acc_counts" in source


def test_a_reward_worker_is_asked_without_a_second_try():
    source = inspect.getsource(agent_loop.AgentLoopWorker._compute_score)
    assert "await selected_reward_loop_worker_handle.compute_score.remote(data)" in source
    assert "except" not in source


def test_engines_have_a_strategy_each_but_for_fsdp():
    assert [kind.strategy for kind in (McoreActorConfig, VeOmniActorConfig, TorchTitanActorConfig)] == [
        *("megatron", "veomni", "torchtitan")
    ]
    assert 'self.engine, "strategy", self.strategy' in inspect.getsource(FSDPActorConfig.__post_init__)
