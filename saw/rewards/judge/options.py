"""The settings of a judge."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from saw.faults import readable

PROMPTS = Path(__file__).with_name("prompts")


class JudgeError(ValueError):
    """A judge with unusable settings; the message names the key, the value and what is allowed."""


class JudgeOptions(BaseModel):
    """A judge: its server, prompt, limits and prices.

    ``prompt``, ``objectives``, ``lowest`` and ``highest`` are the rubric; a task sets them, see
    ``configs/objectives/tldr.yaml``.

    Attributes:
        model (str): the model's name on the server.
        base_url (str | None): address of an OpenAI-compatible server, including ``/v1`` or the like; None uses the
            judge that verl serves in the cluster (``reward.reward_model``).
        server_name (str | None): the name under which its verdicts are cached; None uses the address. Set it for a
            server whose address changes: the one that verl serves has a different address in every run.
        api_key_env (str | None): the environment variable that holds the key; None for a server without a key.
            The key itself is never part of a configuration.
        prompt (str): the rubric, a template in ``saw/rewards/judge/prompts``, or an absolute path.
        objectives (tuple[str, ...]): the scores in a reply.
        lowest (int): the lowest score.
        highest (int): the highest score.
        temperature (float): the judge's sampling temperature.
        max_tokens (int): maximum length of a reply.
        extra_body (dict): additional request fields, for example to turn off thinking.
        in_flight (int): maximum concurrent requests per node.
        per_minute (int | None): maximum requests per minute and node; None for no limit.
        timeout (float): seconds for one request, from the first byte sent to the last one received.
        attempts (int): requests before giving up on a question.
        longest_wait (float): maximum seconds between two attempts, even if ``Retry-After`` asks for more.
        input_price (float): dollars per million tokens.
        output_price (float): dollars per million tokens.
        cache (str | None): a file that stores verdicts, so that none is paid for twice; None stores none. Machines that
            share its folder write one file each.
        faults (str | None): a file for the first unusable replies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    base_url: str | None = None
    server_name: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = None
    prompt: str
    objectives: tuple[str, ...] = Field(min_length=1)
    lowest: int
    highest: int
    temperature: float = Field(default=0.1, ge=0.0)
    max_tokens: int = Field(default=256, ge=1)
    extra_body: dict[str, Any] = {}
    in_flight: int = Field(default=64, ge=1)
    per_minute: int | None = Field(default=None, ge=1)
    timeout: float = Field(default=60.0, gt=0.0)
    attempts: int = Field(default=6, ge=1)
    longest_wait: float = Field(default=60.0, ge=0.0)
    input_price: float = Field(default=0.0, ge=0.0)
    output_price: float = Field(default=0.0, ge=0.0)
    cache: str | None = None
    faults: str | None = None

    @field_validator("base_url")
    @classmethod
    def _address(cls, base_url: str | None) -> str | None:
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ValueError(f"it is {base_url!r}; expected an address that starts with http:// or https://")
        return base_url

    @field_validator("prompt")
    @classmethod
    def _there(cls, prompt: str) -> str:
        if not (PROMPTS / prompt).is_file():
            allowed = ", ".join(sorted(path.name for path in PROMPTS.iterdir()))
            raise ValueError(f"it is {prompt!r}, which is not a file; expected an absolute path, or one of {allowed}")
        return prompt

    @field_validator("highest")
    @classmethod
    def _above_the_lowest(cls, highest: int, info: ValidationInfo) -> int:
        if highest <= (lowest := info.data.get("lowest", highest - 1)):
            raise ValueError(f"it is {highest}; expected a number above judge.lowest, {lowest}")
        return highest

    @property
    def prompt_path(self) -> Path:
        """Path of the template; an absolute path is used unchanged."""
        return PROMPTS / self.prompt

    @property
    def server(self) -> str:
        """Identifies the server in the cache: two servers may serve different models under one name."""
        return self.server_name or (self.base_url or "").rstrip("/")

    @classmethod
    def of(cls, section: Mapping[str, Any] | None) -> JudgeOptions:
        """Read a configuration section.

        Raises:
            JudgeError: if it is missing or wrong, with one line per fault.
        """
        if not section or "model" not in section:  # the task's own section has a rubric but no model
            raise JudgeError("judge.model is not set: no judge is selected; pick one, for example judge=gemini")
        try:
            return cls.model_validate(dict(section))
        except ValidationError as error:
            remedy = "is not set; a task's objectives set it, for example objectives=tldr"
            raise JudgeError(readable(error, "judge", cls).replace("is not set", remedy)) from None

    def api_key(self) -> str | None:
        """The key, from the environment.

        Raises:
            JudgeError: if ``api_key_env`` names a variable that is not set.
        """
        return None if self.api_key_env is None else key_in(self.api_key_env)


def key_in(variable: str) -> str:
    """A judge's key, from the environment.

    Raises:
        JudgeError: if the variable is not set, or empty.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise JudgeError(
            f"judge.api_key_env is {variable!r}, and that environment variable is not set on this machine; "
            "export it, or pick another judge (verl's own command does not pass variables to a running Ray cluster: "
            "in that case, set it on every node before ray start)"
        )
    return key
