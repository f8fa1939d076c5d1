"""Against a real server of the interface: ``transformers serve`` with a tiny random Llama."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveal.llm import EndpointError, OpenAICompatibleLM

NEEDED = ("fastapi", "uvicorn", "openai")
ASK = [{"role": "user", "content": "Is it?"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs pip install transformers[serving]"
)


def save_llama(folder):
    """A random Llama of two layers, and a tokenizer of words that can chat."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "user", "assistant", ":", "Is", "it", "?", "yes", "no", "one", "two", ","]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[:2] = 0  # it does not end at once
    model.generation_config.do_sample = True  # the server draws only from models that say so
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = save_llama(tmp_path_factory.mktemp("llama"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("transformers", path=str(Path(sys.executable).parent)) or "transformers"
    command = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = folder / "log.txt"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=offline) as server:
        try:
            for _ in range(480):
                if server.poll() is not None:
                    pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.25)
            else:
                pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")
            yield f"http://127.0.0.1:{port}/v1", str(folder)
        finally:
            server.terminate()
            server.wait(30)


def test_a_real_server(url):
    address, name = url
    lm = OpenAICompatibleLM(address, name, timeout=60, retries=2, cache=False)
    answer = lm.complete(ASK, max_new_tokens=6)
    assert lm.meter.calls == 1
    assert lm.meter.prompt_tokens == 5  # user : Is it ?
    assert 1 <= lm.meter.completion_tokens <= 6
    assert answer
    assert lm.complete(ASK, max_new_tokens=6) == answer
    assert lm.generate(["one, two,"], max_new_tokens=4) == lm.generate(["one, two,"], max_new_tokens=4)
    drawn = [lm.complete(ASK, max_new_tokens=6, temperature=5.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    other = OpenAICompatibleLM(address, "nowhere/no-model", timeout=60, retries=0, cache=False)
    with pytest.raises(EndpointError, match=r"HTTP [45]"):
        other.complete(ASK)
