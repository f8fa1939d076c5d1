"""A served language model: what is sent, what is kept, and what happens when the server misbehaves."""

import json

import pytest
import torch

from foveal.llm import EndpointError, OpenAICompatibleLM

from .conftest import chat

ASK = [{"role": "user", "content": "Is it?"}]


def model(server, **options):
    return OpenAICompatibleLM(server.url, "tiny", **{"timeout": 0.3, "retries": 3, "backoff": 0.01, **options})


def test_a_conversation_and_a_text(server):
    server.script = [chat(" yes. no "), {"choices": [{"text": " five, six"}], "usage": None}]
    lm = model(server, api_key="secret")
    assert lm.complete(ASK, max_new_tokens=9) == "yes. no"
    assert lm.generate(["three, four,"], stop=[","]) == [" five"]
    (first, body, headers), (second, continued, _) = server.requests
    assert first == "/v1/chat/completions"
    assert body == {"model": "tiny", "max_tokens": 9, "temperature": 0.0, "messages": ASK}
    assert headers["Authorization"] == "Bearer secret"
    assert second == "/v1/completions"
    assert continued == {"model": "tiny", "max_tokens": 64, "temperature": 0.0, "prompt": "three, four,", "stop": [","]}


@pytest.mark.parametrize("content", [None, "", "  ", []])
def test_a_model_that_says_nothing(server, content):
    server.script = [chat(content)]
    lm = model(server)
    assert lm.complete(ASK) == ""
    lm.complete(ASK)
    assert lm.meter.calls == 2, "nothing is not worth keeping"


def test_parts_of_a_text_are_joined(server):
    server.script = [chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]
    assert model(server).complete(ASK) == "ab"


@pytest.mark.parametrize("fault", [500, 502, 503, 429, 408, b"<html>busy</html>", b"", "cut", "hang", (200, b"{", {})])
def test_what_passes_is_tried_again(server, fault):
    server.script = [fault, fault, chat("at last")]
    lm = model(server)
    assert lm.complete(ASK) == "at last"
    assert (lm.meter.retries, lm.meter.calls, len(server.requests)) == (2, 1, 3)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(503, "HTTP 503 .*status 503"), (b"<html>", "no JSON: <html>"), ("hang", "no answer within 0.3 s"), ("cut", "")],
)
def test_what_does_not_pass_ends(server, fault, words):
    server.script = [fault]
    with pytest.raises(EndpointError, match=f"{words}.*after 4 tries; is this the server, and is it running") as error:
        model(server).complete(ASK)
    assert server.url in str(error.value)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (400, "HTTP 400 .*does not accept"),
        ((401, {"error": {"message": "bad key secret"}}, {}), "HTTP 401 .*bad key …; check the API key"),
        ((404, {"detail": "no model tiny"}, {}), "no model tiny; check the address and the model's name"),
        ((302, {}, {"Location": "http://elsewhere/v1"}), "redirects to 'http://elsewhere/v1'"),
        ({"error": "overloaded"}, "holds no text: .*overloaded"),
        ({"choices": []}, "holds no text"),
        ({"choices": [{"message": "yes"}]}, "holds no text"),
        ({"choices": [{"message": {"content": 5}}]}, "holds no text"),
        ([1], "no JSON object"),
    ],
)
def test_what_the_server_means_is_not_tried_again(server, answer, words):
    server.script = [answer]
    with pytest.raises(EndpointError, match=words) as error:
        model(server, api_key="secret").complete(ASK)
    assert "secret" not in str(error.value)
    assert len(server.requests) == 1


def test_no_server():
    lm = OpenAICompatibleLM("http://127.0.0.1:1", "tiny", retries=1, backoff=0.01)
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:1/v1.*no connection .*after 2 tries"):
        lm.complete(ASK)


def test_waits_double_and_the_server_may_ask_for_more(server, monkeypatch):
    waits = []
    monkeypatch.setattr("foveal.llm.endpoint.time.sleep", waits.append)
    later = (429, {}, {"Retry-After": "7"})
    server.script = [500, 500, later, (429, {}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), chat("yes")]
    model(server, retries=4, backoff=0.5).complete(ASK)
    assert [wait for wait in waits if wait != 0.01] == [0.5, 1.0, 7.0, 4.0]


def test_answers_are_kept(server, tmp_path):
    server.script = [lambda body: chat(f"{body['messages'][0]['content']} {len(server.requests)}")]
    first, again = model(server, cache=tmp_path), model(server, cache=tmp_path)
    answers = first.generate([ASK, [{"role": "user", "content": "other"}]])
    assert again.generate([ASK, [{"role": "user", "content": "other"}]]) == answers
    assert (again.meter.calls, again.meter.cache_hits) == (0, 2)
    different = [
        again.complete(ASK, max_new_tokens=65),
        again.complete(ASK, max_new_tokens=64, temperature=0.5, seed=1),
        again.complete(ASK, max_new_tokens=64, temperature=0.5, seed=2),
        OpenAICompatibleLM(server.url, "large", cache=tmp_path).complete(ASK, max_new_tokens=64),
        model(server, cache=tmp_path, extra={"top_p": 0.5}).complete(ASK, max_new_tokens=64),
        model(server, cache=False).complete(ASK, max_new_tokens=64),
    ]
    assert len({answers[0], *different}) == 7
    assert again.complete(ASK, max_new_tokens=64, seed=3) == answers[0], "a seed means nothing at temperature 0"
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 7
    assert "secret" not in "".join(path.read_text() for path in files)


def test_by_default_in_the_cache_folder(server, tmp_path):
    model(server).complete(ASK)
    assert len(list((tmp_path / "cache" / "replies").rglob("*.json"))) == 1


def test_a_broken_file_is_asked_for_again(server, tmp_path):
    model(server, cache=tmp_path).complete(ASK)
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_text()
    for broken in ("", whole[: len(whole) // 2], "[]", '{"request": 1}', whole.replace("Is it?", "Is he?")):
        path.write_text(broken)
        lm = model(server, cache=tmp_path)
        assert lm.complete(ASK) == "yes"
        assert lm.meter.calls == 1
        assert path.read_text() == whole


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    lm = model(server, cache=tmp_path / "file")
    with pytest.warns(UserWarning, match="answers are not kept"):
        assert lm.complete(ASK) == "yes"
    assert lm.complete(ASK) == "yes"  # says so once: warnings are errors to this test otherwise


def test_requests_at_once_are_limited(server):
    prompts = [[{"role": "user", "content": str(number)}] for number in range(12)]
    server.script = [lambda body: chat(body["messages"][0]["content"])]
    assert model(server, parallel=3).generate(prompts) == [str(number) for number in range(12)]
    assert 2 <= server.at_once <= 3


def test_after_an_error_nothing_further_is_asked(server):
    server.script = [400]
    with pytest.raises(EndpointError):
        model(server, parallel=1).generate([[{"role": "user", "content": str(number)}] for number in range(30)])
    assert len(server.requests) < 30


def test_seeds_come_from_the_generator(server):
    def seeds(seed):
        server.requests.clear()
        options = {"temperature": 1.0, "generator": torch.Generator().manual_seed(seed)}
        model(server, cache=False, parallel=1).generate([ASK, ASK], **options)
        return [body["seed"] for _, body, _ in server.requests]

    first = seeds(0)
    assert first == seeds(0) != seeds(1)
    assert len(set(first)) == 2


def test_what_it_cost(server):
    server.script = [chat("a", (1000, 10)), 500, chat("b", (500, 20)), chat("c", None)]
    lm = model(server, prices=(2.0, 10.0))
    lm.complete(ASK)
    lm.complete(ASK)
    lm.complete([*ASK, *ASK])
    assert lm.meter.cost == pytest.approx((1500 * 2 + 30 * 10) / 1e6)
    assert lm.meter.summary() == "2 calls, 1 from the cache, 1 retries, 1,500 + 30 tokens, cost 0.0033"
    lm.complete([*ASK, *ASK, *ASK])
    assert lm.meter.cost is None, "the third answer came without numbers"
    assert "1 answers of unknown length" in lm.meter.summary()
    assert model(server).meter.cost is None


def test_fields_can_be_added_and_taken_away(server):
    model(server, extra={"max_tokens": None, "max_completion_tokens": 5}).complete(ASK)
    assert server.requests[0][1] == {"model": "tiny", "temperature": 0.0, "messages": ASK, "max_completion_tokens": 5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"base_url": "localhost:8000"}, "base_url='localhost:8000'"),
        ({"base_url": "ftp://localhost"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://a b/v1"}, "base_url"),
        ({"base_url": "http://localhost:99999"}, "base_url"),
        ({"base_url": "http://me:secret@localhost"}, "bare address"),
        ({"model": " "}, "model"),
        ({"api_key": "secret\nlines"}, "api_key"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"backoff": -1}, "backoff"),
        ({"parallel": 0}, "parallel"),
        ({"prices": (1.0,)}, "prices"),
        ({"prices": (1.0, -1.0)}, "prices"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        OpenAICompatibleLM(**{"base_url": "http://localhost", "model": "tiny", **arguments})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ("one text", {}, "list of prompts"),
        (ASK, {}, "list of prompts"),
        ([""], {}, "empty"),
        ([[]], {}, "empty"),
        (["x"], {"temperature": 1.0}, "seed"),
        (["x"], {"temperature": -1.0}, "temperature"),
        (["x"], {"max_new_tokens": 0}, "max_new_tokens"),
        (["x"], {"stop": "."}, "stop"),
    ],
)
def test_bad_requests_are_not_sent(server, prompts, options, words):
    with pytest.raises(ValueError, match=words):
        model(server).generate(prompts, **options)
    assert not server.requests
    assert model(server).generate([]) == []


def test_the_cache_is_readable_json(server, tmp_path):
    model(server, cache=tmp_path).complete(ASK)
    (path,) = tmp_path.rglob("*.json")
    stored = json.loads(path.read_text())
    assert stored["reply"] == "yes"
    assert stored["request"]["messages"] == ASK
