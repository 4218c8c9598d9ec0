"""Right and broken answers to BFCL's items, made from the package's own ground truth. Runs in BFCL's environment.

    python tests/e2e/bfcl_answers.py right CATEGORY ...      writes below BFCL_PROJECT_ROOT what a model would have said
"""

import ast
import json
import os
import sys
from pathlib import Path

from bfcl_eval.utils import get_directory_structure_by_category, load_dataset_entry, load_ground_truth_entry

from recipes.toolrl.bfcl.handler import NAME


def reply(calls: list[dict]) -> str:
    """A turn in the format that the models are trained to."""
    lines = "\n".join(json.dumps(call) for call in calls)
    return f"<think> I call. </think>\n<tool_call>\n{lines}\n</tool_call>"


def pick(allowed: list):
    """The first allowed value."""
    return next((item for item in allowed if item != ""), "")


def plain(value):
    """A value of the ground truth as a model would write it: one level down, a dictionary holds lists of allowed ones."""
    if isinstance(value, dict):
        return {key: pick(allowed) for key, allowed in value.items() if "" not in allowed}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [plain(item) for item in value]
    return value


def java(value, kind: str, nested: str | None) -> str:
    """The value as Java source, which the checker expects as a string."""
    if isinstance(value, str):
        return value if kind != "element" else f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and kind == "Array":  # the checker leaves quotes in an array's elements
        return f"new {nested}[]{{{', '.join(java(item, str(nested), None) for item in value)}}}"
    if isinstance(value, list):
        elements = ", ".join(java(item, nested if nested in ("long", "float") else "element", None) for item in value)
        return f"new ArrayList<>(Arrays.asList({elements}))" if value else "new ArrayList<>()"
    if isinstance(value, dict):
        puts = " ".join(f'put("{key}", {java(item, "element", None)});' for key, item in value.items())
        return f"new HashMap<>() {{{{ {puts} }}}}"
    return f"{value}{ {'long': 'L', 'float': 'f'}.get(kind, '') }"


def javascript(value, kind: str, nested: str | None) -> str:
    """The value as JavaScript source, which the checker expects as a string."""
    if isinstance(value, str):
        return value if kind != "element" else json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(javascript(item, 'element', None) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {javascript(item, 'element', None)}" for key, item in value.items()) + "}"
    return f"{value}{'n' if kind == 'Bigint' else ''}"


def single_turn(category: str, functions: list[dict], truth: list[dict]) -> str:
    """The calls that the ground truth allows, optional parameters left out."""
    calls = []
    for item in truth:
        (name, allowed), *_ = item.items()
        function = next(function for function in functions if function["name"] == name)
        required = function["parameters"]["required"]
        properties = function["parameters"]["properties"]
        parameters = {}
        for key, values in allowed.items():
            if "" in values and key not in required:
                continue
            value = plain(pick(values))
            if key not in properties:
                continue  # an optional one that the truth allows and the tool lacks
            kind, nested = properties[key]["type"], properties[key].get("items", {}).get("type")
            if category == "simple_java":
                value = java(value, kind, nested)
            elif category == "simple_javascript":
                value = javascript(value, kind, nested)
            parameters[key] = value
        calls.append({"name": name, "parameters": parameters})
    return reply(calls)


def multi_turn(functions: list[dict], truth: list[list[str]]) -> list[list[str]]:
    """Each turn's true calls in one step, and a last step without any."""
    order = {function["name"]: list(function["parameters"]["properties"]) for function in functions}
    turns = []
    for turn in truth:
        calls = []
        for source in turn:
            call = ast.parse(source, mode="eval").body
            named = dict(zip(order[call.func.id], call.args, strict=False))
            named.update({keyword.arg: keyword.value for keyword in call.keywords})
            parameters = {key: ast.literal_eval(node) for key, node in named.items()}
            calls.append({"name": call.func.id, "parameters": parameters})
        turns.append(([reply(calls)] if calls else []) + ["<think> Done. </think>\n<response> Done. </response>"])
    return turns


def broken(answer):
    """The same with names that no tool has."""
    if isinstance(answer, list):
        return [broken(item) for item in answer]
    return answer.replace('{"name": "', '{"name": "no_')


def main() -> None:
    kind, *categories = sys.argv[1:]
    for category in categories:
        folder = Path(os.environ["BFCL_PROJECT_ROOT"], "result", NAME, get_directory_structure_by_category(category))
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        # with the declared types, not with what the hint for the model makes of them
        entries = load_dataset_entry(category, include_language_specific_hint=False)
        for entry, truth in zip(entries, load_ground_truth_entry(category), strict=True):
            functions = entry["function"] + [f for held in entry.get("missed_function", {}).values() for f in held]
            if category.startswith("multi_turn"):
                answer = multi_turn(functions, truth["ground_truth"])
            else:
                answer = single_turn(category, functions, truth["ground_truth"])
            result = answer if kind == "right" else broken(answer)
            lines.append(json.dumps({"id": entry["id"], "result": result, "latency": 0.0}) + "\n")
        (folder / f"BFCL_v4_{category}_result.json").write_text("".join(lines))


if __name__ == "__main__":
    main()
