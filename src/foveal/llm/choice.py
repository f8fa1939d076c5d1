"""A language model out of the text of a command's option."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from foveal.llm.base import LanguageModel, Prompt
from foveal.llm.endpoint import Endpoint, EndpointError, checked_url
from foveal.llm.hugging_face import smollm2
from foveal.llm.openai_compatible import OpenAICompatibleLM
from foveal.llm.scripted import ScriptedLM

FORMS = "smollm2, scripted:FILE.json or openai:URL[#model]"
KEY_VARIABLE = "OPENAI_API_KEY"
LOCAL = ("localhost", "127.0.0.1", "::1")


def language_model(text: str) -> LanguageModel:
    """``smollm2``, ``scripted:FILE.json`` or ``openai:URL[#model]`` as a model; nothing is asked of it yet.

    - ``scripted:FILE.json``: a list of replies, given in their order; or an object whose keys are words of the last
      message and whose values are the replies (the longest key that occurs in it decides).
    - ``openai:http://localhost:8000/v1#name``: the name may be left out when the server has one model only. The key is
      ``$OPENAI_API_KEY``, which is sent over https and to this machine alone.

    Raises:
        ValueError: another text, a file that is no such JSON, no address. `EndpointError` when a server that is to name
            its model does not.
    """
    kind, colon, rest = text.partition(":")
    if text == "smollm2":
        return smollm2()
    if kind == "scripted" and rest:
        return scripted(Path(rest))
    if kind == "openai" and colon:
        return _served(*rest.partition("#")[::2])
    raise ValueError(f"lm={text!r} is no language model that foveal knows: give {FORMS}")


def scripted(file: Path) -> ScriptedLM:
    """The replies of a JSON file, see `language_model`."""
    try:
        replies = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file}: not JSON ({error}); write a list of replies, or an object from words to them"
        ) from error
    said = list(replies.values()) if isinstance(replies, dict) else replies
    if not isinstance(said, list) or not all(isinstance(reply, str) for reply in said):
        raise ValueError(f"{file}: must hold a list of texts, or an object whose values are texts")
    return ScriptedLM(replies if isinstance(replies, list) else _ByWords(replies, file))


class _ByWords:
    """The reply whose key occurs in the last message."""

    def __init__(self, replies: Mapping[str, str], file: Path) -> None:
        self.replies, self.file = replies, file

    def __call__(self, prompt: Prompt) -> str:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        known = [key for key in self.replies if key.lower() in text.lower()]
        if not known:
            raise ValueError(f"{self.file}: no key occurs in {text!r}; add one, or the empty one for all that is left")
        return self.replies[max(known, key=len)]


def _served(url: str, model: str) -> OpenAICompatibleLM:
    parts = urlsplit(checked_url(url))
    safe = parts.scheme == "https" or parts.hostname in LOCAL
    key = os.environ.get(KEY_VARIABLE) or None if safe else None
    return OpenAICompatibleLM(url, model or _only_model(Endpoint(url, key)), key)


def _only_model(endpoint: Endpoint) -> str:
    answer = endpoint.request("models").get("data")
    rows = answer if isinstance(answer, list) else []
    names = [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
    if len(names) == 1:
        return names[0]
    found = f"it has {', '.join(names[:8])}" + (" …" if len(names) > 8 else "") if names else "it names none"
    raise EndpointError(f"lm: which model of {endpoint.base_url}? {found}; write openai:URL#model")
