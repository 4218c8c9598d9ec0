"""BFCL v4's scores, from the number of correct answers in each category.

The sources do not define the paper's Overall, so three means are given, each under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping

#: The part of the table -> its categories. Non-Live and Multi-Turn have the paper's number of items.
PARTS: dict[str, tuple[str, ...]] = {
    "non_live": (
        *("simple_python", "simple_java", "simple_javascript"),
        *("multiple", "parallel", "parallel_multiple"),
    ),
    "live": ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    "multi_turn": ("multi_turn_base", "multi_turn_long_context", "multi_turn_miss_func", "multi_turn_miss_param"),
}
CATEGORIES = tuple(category for categories in PARTS.values() for category in categories)
_SIMPLE = PARTS["non_live"][:3]


def scores(categories: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """The parts and their means, in per cent.

    Args:
        categories (Mapping[str, Mapping[str, int]]): ``correct`` and ``total`` of each of :data:`CATEGORIES`.

    Returns:
        dict[str, float]: as BFCL computes them, ``non_live``, the unweighted mean of simple (itself the mean of three
        languages), multiple, parallel and parallel_multiple; ``live``, weighted by items; ``multi_turn``, unweighted.
        Also ``mean_of_parts`` and ``mean_by_items``, the latter weighted by the parts' numbers of items.

    Raises:
        KeyError: if a category is absent.
    """
    accuracy = {name: 100.0 * count["correct"] / count["total"] for name, count in categories.items()}
    items = {part: sum(categories[name]["total"] for name in names) for part, names in PARTS.items()}
    simple = _mean([accuracy[name] for name in _SIMPLE])
    parts = {
        "non_live": _mean([simple, *(accuracy[name] for name in PARTS["non_live"][3:])]),
        "live": sum(accuracy[name] * categories[name]["total"] for name in PARTS["live"]) / items["live"],
        "multi_turn": _mean([accuracy[name] for name in PARTS["multi_turn"]]),
    }
    return {
        **parts,
        "mean_of_parts": _mean(list(parts.values())),
        "mean_by_items": sum(parts[part] * items[part] for part in PARTS) / sum(items.values()),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
