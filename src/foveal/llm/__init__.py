"""Language models as methods ask them: prompts in, texts out, the same for a local model, a served one, a scripted one.

A method takes any `LanguageModel` and never learns which one it talks to. `HFLM` runs a causal model of
Hugging Face (`smollm2()` the one that comes with foveal), `OpenAICompatibleLM` asks a server, `ScriptedLM` says what a
test wants to hear; `language_model("openai:http://localhost:8000/v1")` makes one of the text of an option.
"""

from foveal.llm.base import LanguageModel, Prompt, Turn
from foveal.llm.choice import language_model
from foveal.llm.cost import CostMeter
from foveal.llm.endpoint import EndpointError
from foveal.llm.hugging_face import HFLM, smollm2
from foveal.llm.openai_compatible import OpenAICompatibleLM
from foveal.llm.replies import ReplyCache
from foveal.llm.scripted import ScriptedLM

__all__ = [
    "HFLM",
    "CostMeter",
    "EndpointError",
    "LanguageModel",
    "OpenAICompatibleLM",
    "Prompt",
    "ReplyCache",
    "ScriptedLM",
    "Turn",
    "language_model",
    "smollm2",
]
