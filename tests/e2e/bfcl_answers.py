"""Right and broken answers to BFCL's items, made from the package's own ground truth. Runs in BFCL's environment.

python tests/e2e/bfcl_answers.py right CATEGORY ...      writes a model's replies below BFCL_PROJECT_ROOT
"""

import ast
import json
import os
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bfcl_eval.utils import get_directory_structure_by_category, load_dataset_entry, load_ground_truth_entry

from recipes.toolrl.bfcl.dialogue import SINGLE_TURN, system_prompt
from recipes.toolrl.bfcl.handler import NAME


def reply(calls: list[dict]) -> str:
    """A turn in the trained format."""
    lines = "\n".join(json.dumps(call) for call in calls)
    return f"<think> I call. </think>\n<tool_call>\n{lines}\n</tool_call>"


def pick(allowed: list):
    """The first allowed value."""
    return next((item for item in allowed if item != ""), "")


def plain(value):
    """A value of the ground truth as a model would write it; one level down, a dictionary holds allowed values."""
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
                continue  # an optional parameter that the truth allows but the tool lacks
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
    """The same answer with names that no tool has."""
    if isinstance(answer, list):
        return [broken(item) for item in answer]
    return answer.replace('{"name": "', '{"name": "no_')


def answers(category: str) -> Iterator[tuple[str, Any]]:
    """Id and right answer of every item."""
    # with the declared types, not as converted for the model's hint
    entries = load_dataset_entry(category, include_language_specific_hint=False)
    for entry, truth in zip(entries, load_ground_truth_entry(category), strict=True):
        functions = entry["function"] + [f for held in entry.get("missed_function", {}).values() for f in held]
        if category.startswith("multi_turn"):
            yield entry["id"], multi_turn(functions, truth["ground_truth"])
        else:
            yield entry["id"], single_turn(category, functions, truth["ground_truth"])


def write(kind: str, categories: list[str]) -> None:
    """Write right or broken answers in place of a model's."""
    for category in categories:
        folder = Path(os.environ["BFCL_PROJECT_ROOT"], "result", NAME, get_directory_structure_by_category(category))
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"id": name, "result": answer if kind == "right" else broken(answer), "latency": 0.0}) + "\n"
            for name, answer in answers(category)
        ]
        (folder / f"BFCL_v4_{category}_result.json").write_text("".join(lines))


class Oracle(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that knows the answers to the first two items of each category.

    It fails on items of one name, and refuses an item (or all, ``*``) as vLLM refuses a prompt that is too long. It
    refuses another item only with ``max_tokens``, as vLLM does if they exceed the context.
    """

    items: list[
        tuple[str, str, list[str], list[tuple[int, str]]]
    ]  # id, system prompt, questions, (turn, reply) in order
    failing = refused = "-"
    tight = "parallel_1"
    #: Sampling parameters that vLLM would take from a model's folder.
    parameters = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        system, user = request["messages"]
        said = user["content"].count("<think> I call.") + user["content"].count("<think> Done. </think>")
        if not all(name in request for name in self.parameters) or user["content"].count(SINGLE_TURN) == 0:
            return self.answer(500, {"error": f"sampling, or the sentence, is left out: {request}"})
        name, reply = next(
            (name, replies[said][1])
            for name, prompt, questions, replies in self.items
            if system["content"] == prompt
            and said < len(replies)
            and all(question in user["content"] for question in questions[: replies[said][0] + 1])
        )
        if name.startswith(self.failing):
            return self.answer(500, {"error": "out of order"})
        if self.refused in (name, "*") or (name == self.tight and "max_tokens" in request):
            return self.answer(400, {"error": {"message": "too long", "type": "BadRequestError", "code": 400}})
        reply = reply.replace("I call.", "I call.\u2028\x85\ud800")  # unusual line breaks, and a lone surrogate
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        content = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return self.answer(200, {**content, "usage": usage})

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


def serve(port: str, failing: str, refused: str, categories: list[str]) -> None:
    """Answer until killed."""
    Oracle.items, Oracle.failing, Oracle.refused = [], failing, refused
    for category in categories:
        entries = load_dataset_entry(category)[:2]
        for entry, (name, answer) in zip(entries, answers(category), strict=False):
            questions = [
                "\n".join(message["content"].strip() for message in turn if message["role"] == "user")
                for turn in entry["question"]
            ]
            turns = answer if isinstance(answer, list) else [[answer]]
            replies = [(number, reply) for number, turn in enumerate(turns) for reply in turn]
            Oracle.items.append((name, system_prompt(entry["function"]), questions, replies))
    ThreadingHTTPServer(("127.0.0.1", int(port)), Oracle).serve_forever()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, failing, refused, *categories]:
            serve(port, failing, refused, categories)
        case [kind, *categories]:
            write(kind, categories)
