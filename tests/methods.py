"""What single methods cannot do without, for tests of every method."""

from typing import Any


def own_options(method: str, objectives: int = 2) -> dict[str, Any]:
    """The options that a method needs."""
    if method.startswith("static_"):
        return {"static_weights": tuple(range(1, objectives + 1))}
    if method.startswith("gradient_"):
        return {"gradient": {"lr": 1e-6}}
    if method == "lagrangian":
        return {"lagrangian": {"targets": (None, *[0.5] * (objectives - 1))}}
    return {}
