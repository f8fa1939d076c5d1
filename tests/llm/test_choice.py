"""Language models out of the text of an option."""

import json
import subprocess
import sys

import pytest

from foveal.llm import HFLM, EndpointError, OpenAICompatibleLM, language_model

ASK = [{"role": "user", "content": "What of a Sea Eagle?"}]


def test_scripted_in_order(tmp_path):
    file = tmp_path / "replies.json"
    file.write_text(json.dumps(["one", "two"]))
    lm = language_model(f"scripted:{file}")
    assert lm.generate([ASK, ASK]) == ["one", "two"]


def test_scripted_by_words(tmp_path):
    file = tmp_path / "replies.json"
    file.write_text(json.dumps({"eagle": "bird", "sea eagle": "large bird", "": "thing"}))
    lm = language_model(f"scripted:{file}")
    assert lm.generate([ASK, "an eagle", "a stone"]) == ["large bird", "bird", "thing"]
    file.write_text(json.dumps({"eagle": "bird"}))
    with pytest.raises(ValueError, match="no key occurs in 'a stone'"):
        language_model(f"scripted:{file}").generate(["a stone"])


@pytest.mark.parametrize("content", ["{", '"text"', "[1]", '{"a": ["b"]}'])
def test_scripted_out_of_something_else(tmp_path, content):
    file = tmp_path / "replies.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"replies\.json"):
        language_model(f"scripted:{file}")


@pytest.mark.parametrize("text", ["", "gpt", "smollm2:x", "scripted:", "http://localhost", "openai", "openai:nowhere"])
def test_other_texts(text):
    with pytest.raises(ValueError, match=r"lm=|base_url="):
        language_model(text)


def test_a_server_and_its_model(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    lm = language_model(f"openai:{server.url}#org/tiny:free")
    assert isinstance(lm, OpenAICompatibleLM)
    assert lm.model == "org/tiny:free"
    assert not server.requests, "nothing is asked yet"
    lm.complete(ASK)
    assert server.requests[0][2]["Authorization"] == "Bearer secret"


def test_the_key_is_not_sent_in_the_clear(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert language_model("openai:http://far.example/v1#m").endpoint._key is None
    assert language_model("openai:https://far.example/v1#m").endpoint._key == "secret"


def test_the_only_model_of_a_server(server):
    server.script = [{"data": [{"id": "the-one"}]}]
    assert language_model(f"openai:{server.url}").model == "the-one"
    assert server.requests[0][0] == "/v1/models"


@pytest.mark.parametrize(
    ("answer", "words"),
    [({"data": [{"id": "a"}, {"id": "b"}]}, "it has a, b; write"), ({"data": None}, "it names none"), ({}, "none")],
)
def test_which_model(server, answer, words):
    server.script = [answer]
    with pytest.raises(EndpointError, match=words):
        language_model(f"openai:{server.url}")


def test_smollm2():
    assert isinstance(language_model("smollm2"), HFLM)


def test_torch_is_not_imported_before_a_model_needs_it():
    script = "import sys, foveal.llm\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
