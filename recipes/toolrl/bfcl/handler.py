"""BFCL's handler for our models, and its entry in BFCL's list of models.

The server applies the checkpoint's chat template, so the prompt is tokenised as in training. The base class is
``BaseHandler``, not ``OSSHandler``: that one formats and tokenises prompts itself, which needs transformers, and starts
servers, which :mod:`recipes.toolrl.evaluate` does here.
"""

from __future__ import annotations

import os
import time
from typing import Any

from bfcl_eval.constants.enums import ModelStyle
from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
from bfcl_eval.model_handler.base_handler import BaseHandler
from bfcl_eval.utils import contain_multi_turn_interaction
from openai import BadRequestError, OpenAI

from recipes.common.sampling import Sampling
from recipes.toolrl.bfcl.dialogue import (
    MULTI_TURN,
    SINGLE_TURN,
    executable_calls,
    system_prompt,
    tool_calls,
    user_message,
)
from recipes.toolrl.bfcl.results import RefusedAtOnce

#: Our entry in BFCL's list. No underscore: BFCL's evaluation turns that into a slash.
NAME = "saw"


class ToolRLHandler(BaseHandler):
    """Asks an OpenAI-compatible server, in the format of ToolRL's training rows."""

    #: Set by :func:`register`: BFCL creates the handlers and cannot pass these as arguments.
    served_model = ""
    sampling: Sampling | None = None
    seed = 0
    multi_turn_sentence = False
    client_arguments: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, model_name: str, temperature: float, registry_name: str, is_fc_model: bool, **kwargs: Any):
        super().__init__(model_name, temperature, registry_name, is_fc_model, **kwargs)
        self.model_style = ModelStyle.OPENAI_COMPLETIONS
        self.client = OpenAI(**self.client_arguments) if self.client_arguments else None

    def decode_ast(self, result: str, language: Any, has_tool_call_tag: bool) -> list[dict[str, dict[str, Any]]]:
        """For the syntax checker: ``[{name: parameters}, ...]``."""
        return [{name: parameters} for name, parameters in tool_calls(result)]

    def decode_execute(self, result: str, has_tool_call_tag: bool) -> list[str]:
        """For the simulated tools: ``["name(key=value)", ...]``."""
        return executable_calls(result)

    def _pre_query_processing_prompting(self, test_entry: dict) -> dict:
        several = self.multi_turn_sentence and contain_multi_turn_interaction(test_entry["id"])
        sentence = MULTI_TURN if several else SINGLE_TURN
        return {"message": [], "function": test_entry["function"], "sentence": sentence}

    def add_first_turn_message_prompting(self, inference_data: dict, first_turn_message: list[dict]) -> dict:
        inference_data["message"].extend(first_turn_message)
        return inference_data

    def _add_next_turn_user_message_prompting(self, inference_data: dict, user_message: list[dict]) -> dict:
        inference_data["message"].extend(user_message)
        return inference_data

    def _add_assistant_message_prompting(self, inference_data: dict, model_response_data: dict) -> dict:
        inference_data["message"].append({"role": "assistant", "content": model_response_data["model_responses"]})
        return inference_data

    def _add_execution_results_prompting(
        self, inference_data: dict, execution_results: list[str], model_response_data: dict
    ) -> dict:
        calls = model_response_data["model_responses_decoded"]
        for call, result in zip(calls, execution_results, strict=True):
            inference_data["message"].append({"role": "tool", "name": call, "content": result})
        return inference_data

    def _query_prompting(self, inference_data: dict) -> tuple[Any, float]:
        messages: list[Any] = [
            {"role": "system", "content": system_prompt(inference_data["function"])},
            {"role": "user", "content": user_message(inference_data["message"], inference_data["sentence"])},
        ]
        inference_data["inference_input_log"] = {"messages": messages}
        started = time.monotonic()
        try:
            response = self._ask(messages)
        except BadRequestError as refused:
            if any(message["role"] == "assistant" for message in inference_data["message"]):
                raise
            raise RefusedAtOnce(str(refused)) from refused
        return response, time.monotonic() - started

    def _ask(self, messages: list[Any]) -> Any:
        if self.client is None or self.sampling is None:
            raise RuntimeError("this handler was registered without a server: it can only decode")
        create = self.client.chat.completions.create
        request = {"model": self.served_model, "messages": messages, **self.sampling.request(self.seed, messages)}
        try:
            return create(**request)
        except BadRequestError:
            # vLLM refuses a prompt that fits the context but leaves less of it than max_tokens. Without max_tokens the
            # rest of the context is the limit, as in BFCL's own handlers; a prompt that is too long is still refused.
            request.pop("max_tokens")
            return create(**request)

    def _parse_query_response_prompting(self, api_response: Any) -> dict:
        return {
            "model_responses": _without_surrogates(api_response.choices[0].message.content or ""),
            "input_token": api_response.usage.prompt_tokens,
            "output_token": api_response.usage.completion_tokens,
        }


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can hold but a file cannot, by question marks."""
    return text.encode(errors="replace").decode()


def register(
    base_url: str | None = None,
    served_model: str = "",
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    multi_turn_sentence: bool = False,
    time_limit: float = 600.0,
) -> None:
    """Enter our handler into BFCL's list of models.

    Args:
        base_url (str | None): the server, ``http://host:port/v1``; None to decode and score only.
        served_model (str): the model's name there.
        sampling (Sampling | None): sampling parameters; needed with a server.
        seed (int): of the sampling.
        multi_turn_sentence (bool): in multi-turn items, ToolRL's multi-turn sentence follows the user's words.
        time_limit (float): seconds per request.
    """
    ToolRLHandler.multi_turn_sentence = multi_turn_sentence
    if base_url is not None and sampling is not None:
        ToolRLHandler.served_model = served_model
        ToolRLHandler.sampling, ToolRLHandler.seed = sampling, seed
        arguments = {"base_url": base_url, "timeout": time_limit, "max_retries": 3}
        ToolRLHandler.client_arguments = {**arguments, "api_key": os.environ.get("OPENAI_API_KEY", "none")}
    MODEL_CONFIG_MAPPING[NAME] = ModelConfig(
        model_name=NAME,
        display_name=NAME,
        url="",
        org="",
        license="",
        model_handler=ToolRLHandler,
        is_fc_model=False,
    )
