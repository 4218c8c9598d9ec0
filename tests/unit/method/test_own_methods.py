"""Weightings, measures and aggregations of one's own: what is wrong in them is an error, never a wrong training."""

import math

import pytest
import torch

import saw
from saw.method import registry
from saw.method.registry import Aggregation

REWARDS = torch.tensor([[0.0, 1.0], [1.0, 0.5], [0.0, 0.2], [1.0, 0.1], [0.5, 0.3], [0.0, 0.0]])
GROUPS = [0, 0, 1, 1, 2, 2]
OBJECTIVES = [saw.Objective("a", 0.0, 1.0), saw.Objective("b", 0.0, 1.0)]


@pytest.fixture(autouse=True)
def registered_until_the_test_ends(monkeypatch):
    for name in ("METHODS", "MEASURES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def advantage(method, options=None, **more):
    lengths = torch.full((len(REWARDS),), 3)
    return saw.compute_advantage(
        REWARDS, GROUPS, lengths, method=method, objectives=OBJECTIVES, options=options, **more
    )


def weighted(returned, options=None, **declared):
    saw.weighting("own_", **declared)(lambda context: returned)
    return advantage("own_gdpo", options)


def measured(returned, over="batch", **declared):
    saw.measure("own", **declared)(lambda context: returned)
    return advantage("saw_gdpo", {"informativeness": "own", "over": over})


@pytest.mark.parametrize("weights", [[math.nan, 1.0], [math.inf, 0.0], [-1.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"the weighting of 'own_gdpo' returned \[.*\]; expected .* sum to 1"):
        weighted(torch.tensor(weights))


def test_of_weights_per_group_the_wrong_row_is_named():
    with pytest.raises(ValueError, match=r"returned \[0\.5, 0\.75\]"):
        weighted(torch.tensor([[0.5, 0.5], [0.5, 0.75], [1.0, 0.0]]))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 2), (3, 1), (6, 2), (2, 3), (1, 3, 2)])
def test_weights_of_a_wrong_shape_are_refused(shape):
    """Some of them would broadcast, such as one weight for all, or index other groups, such as a row per sample."""
    with pytest.raises(ValueError, match=r"returned shape \(.*\); expected \(2,\) or \(3, 2\)"):
        weighted(torch.full(shape, 0.5))


@pytest.mark.parametrize("weights", [[0.5, 0.5], None, 0.5, torch.tensor([0.5, 0.5], dtype=torch.complex64)])
def test_weights_that_are_no_real_tensor_are_refused(weights):
    with pytest.raises(TypeError, match="the weighting of 'own_gdpo' returned"):
        weighted(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_weights_of_any_precision_become_float64(dtype):
    result = weighted(torch.tensor([0, 1], dtype=dtype))
    assert result.weights.dtype == torch.float64
    assert result.weights.tolist() == [0.0, 1.0]


def test_rounding_is_no_fault():
    result = weighted(torch.tensor([1.0 + 1e-7, -1e-7]))
    assert result.weights.min() >= 0
    assert advantage("own_gdpo", previous_weights=result.weights).samples.isfinite().all()


@pytest.mark.parametrize("option", [{"ema": 0.5}, {"floor": 0.1}, {"max_change": 0.1}, {"log_only": True}])
def test_smoothing_of_weights_per_group_is_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"options\.{name} is .*own_gdpo"):
        weighted(torch.full((3, 2), 0.5), option, reads=[name])


def test_weights_of_the_batch_are_refused_where_weights_per_group_are_asked_for():
    with pytest.raises(ValueError, match=r"returned shape \(2,\); expected \(3, 2\)"):
        weighted(torch.tensor([0.5, 0.5]), {"over": "group"}, reads=["over"])


@pytest.mark.parametrize("values", [[-1.0, 2.0], [-1.0, -2.0], [-1.0, 1.0], [math.inf, 1.0], [-math.inf, math.nan]])
def test_impossible_values_of_a_measure_are_refused(values):
    with pytest.raises(ValueError, match=r"'saw_gdpo' with the measure 'own' returned \[.*\]; expected .* at least 0"):
        measured(torch.tensor(values))


def test_an_undefined_value_of_a_measure_has_no_weight():
    assert measured(torch.tensor([math.nan, 2.0])).weights.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("over", "shape", "expected"),
    [("group", (2,), "(3, 2)"), ("batch", (3, 2), "(2,)"), ("batch", (1,), "(2,)"), ("group", (1, 2), "(3, 2)")],
)
def test_a_measure_over_something_else_than_asked_for_is_refused(over, shape, expected):
    with pytest.raises(ValueError, match=f"over the {over} returned shape") as refusal:
        measured(torch.ones(shape), over)
    assert str(refusal.value).endswith(f"expected {expected}")


@pytest.mark.parametrize("returned", [torch.tensor([math.nan] + [0.0] * 5), torch.ones(2), torch.ones(6, 1), None])
def test_impossible_advantages_are_refused(returned):
    own = {"own": Aggregation(lambda batch, weights, profile: returned)}
    saw.weighting("", aggregations=own)(lambda context: torch.tensor([0.5, 0.5]))
    with pytest.raises((ValueError, TypeError), match="the aggregation of 'own' returned"):
        advantage("own")


@pytest.mark.parametrize("decorator", [saw.weighting, saw.measure])
@pytest.mark.parametrize(
    "declared",
    [
        {"needs": ["minimum"]},
        {"needs": "minima"},
        {"reads": ["emma"]},
        {"reads": "ema"},
        {"reads": ["gradient"]},
        {"reads": ["gradient.rate"]},
        {"reads": ["saw.options.ema"]},
    ],
)
def test_a_misspelt_declaration_is_refused_when_it_is_made(decorator, declared):
    (argument,) = declared
    with pytest.raises(ValueError, match=rf"@saw\.\w+\('own'\): {argument} is .*; expected a list with some of"):
        decorator("own", **declared)(lambda context: torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("decorator", [saw.weighting, saw.measure])
def test_a_decorator_without_parentheses_is_refused(decorator):
    with pytest.raises(TypeError, match="in parentheses"):

        @decorator
        def own(context):
            return torch.tensor([0.5, 0.5])


@pytest.mark.parametrize("name", ["own weighting,", "own=", "own.", "own-"])
def test_a_name_that_no_command_line_could_give_is_refused(name):
    for decorator in (saw.weighting, saw.measure):
        with pytest.raises(ValueError, match=r"the name is 'own.*'; expected letters"):
            decorator(name)(lambda context: torch.tensor([0.5, 0.5]))
    assert not any(name in known for known in (*registry.METHODS, *registry.MEASURES))


@pytest.mark.parametrize("aggregations", [{}, {"own": lambda batch, weights, profile: None}])
def test_aggregations_that_make_no_method_are_refused(aggregations):
    with pytest.raises(TypeError, match="aggregations is"):
        saw.weighting("own_", aggregations=aggregations)


def test_a_module_under_two_names_is_named_with_both(tmp_path, monkeypatch):
    source = "import saw\n@saw.weighting('twice_')\ndef twice(context): return context.statistics.mean\n"
    (tmp_path / "one_name.py").write_text(source)
    (tmp_path / "other_name.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("one_name")
    with pytest.raises(ValueError, match=r"'twice_grpo' .* one_name\.twice, and now by other_name\.twice"):
        __import__("other_name")


@pytest.mark.parametrize(
    ("need", "options"), [("static_weights", {"static_weights": (1, 3)}), ("learning_rate", {"gradient": {"lr": 1e-3}})]
)
def test_what_is_needed_may_be_set_without_being_declared_twice(need, options):
    saw.weighting("own_", needs=[need])(lambda context: torch.tensor([0.5, 0.5]))
    assert advantage("own_gdpo", options).samples.isfinite().all()


@pytest.mark.parametrize("previous", [[0.0, 0.0], [1.0, 1.0], [0.2, 0.2], [math.nan, 1.0], [2.0, -1.0], [1.0]])
def test_previous_weights_that_no_step_can_have_had_are_refused(previous):
    with pytest.raises(ValueError, match="previous_weights is"):
        advantage("saw_gdpo", {"ema": 0.5}, previous_weights=previous)


def test_a_minimum_that_rounding_puts_above_the_rewards_gives_no_negative_cv():
    lowest = torch.tensor(-1000.2)  # in float32, 0.00001 below the minimum
    rewards = torch.stack((torch.full((100,), lowest), torch.linspace(0, 1, 100)), dim=1)
    rewards[0, 0] = torch.nextafter(lowest, torch.tensor(0.0))
    ranges = [saw.Objective("a", -1000.2), saw.Objective("b", 0.0)]
    result = saw.compute_advantage(rewards, [0] * 100, torch.ones(100), method="saw_gdpo", objectives=ranges)
    assert result.weights.min() >= 0
    assert result.statistics.cv.min() >= 0
