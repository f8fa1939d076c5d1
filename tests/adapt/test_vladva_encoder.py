"""On nano-llava's own processor; the models are tiny random ones, so that no figure hangs on the shipped weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from foveal.adapt.vladva_encoder import VladvaEncoder, wording
from foveal.zoo import nano

torch.set_num_threads(1)
TEXTS = ["a dog", "two small red stars on grass"]


@pytest.fixture(scope="module")
def processor():
    return LlavaProcessor.from_pretrained(nano.folder("nano-llava"))


def lvlm():
    """nano-llava's class and sizes in small, with random weights."""
    config = LlavaForConditionalGeneration.config_class.from_pretrained(nano.folder("nano-llava"))
    for part, options in (
        ("text_config", {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8}),
        ("vision_config", {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}),
    ):
        getattr(config, part).update({**options, "num_hidden_layers": 2, "num_key_value_heads": 2})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def pictures():
    return list(np.random.default_rng(0).integers(0, 255, (2, 50, 70, 3), np.uint8))


def encoder(processor, **options):
    return VladvaEncoder(lvlm(), processor, rank=2, generator=torch.Generator().manual_seed(0), **options)


def test_wording_is_the_chat_template(processor):
    says = wording(processor, "One word:", "Its word:")
    write = processor.tokenizer.decode
    assert write(says.image_prefix_ids) == write(says.text_prefix_ids) == "<s>USER:"
    assert write(says.image_prompt_ids).strip() == "One word:ASSISTANT:"
    assert write(says.text_prompt_ids).strip() == "Its word:ASSISTANT:"
    assert (says.answer_start, says.answer_end) == (" ", "</s>")


def test_wording_of_other_templates(processor):
    class Other:
        chat_template, image_token, tokenizer = "chatml", "<image>", processor.tokenizer
        images = "<image>"

        def apply_chat_template(self, turns, tokenize, add_generation_prompt):
            text = "<s>"  # the template writes it: the tokenizer must not again
            for turn in turns:
                parts = [self.images if part["type"] == "image" else part["text"] for part in turn["content"]]
                text += f"[{turn['role']}]\n{''.join(parts)}[end]\n"
            return text + "[assistant]\n" * add_generation_prompt

    says = wording(Other())
    assert says.image_prefix_ids.count(processor.tokenizer.bos_token_id) == 1
    assert (says.answer_start, says.answer_end) == ("", "[end]\n")
    Other.images = ""
    with pytest.raises(ValueError, match="does not show its picture once"):
        wording(Other())
    Other.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        wording(Other())


def test_untrained_it_sees_what_the_model_reads(processor):
    made = encoder(processor)
    assert not made.model.training
    prompts = [
        ("USER: <image>\nSummarize the provided image in one word: ASSISTANT:", pictures()[:1]),
        (f"USER: {TEXTS[1]}\nSummarize the provided text in one word: ASSISTANT:", None),
    ]
    with torch.no_grad():
        states = [
            made.model.lvlm.model(**processor(text=[text], images=images, return_tensors="pt")).last_hidden_state[:, -1]
            for text, images in prompts
        ]
    for found, state in zip((made.encode_image(pictures()[:1]), made.encode_text(TEXTS[1:])), states, strict=True):
        torch.testing.assert_close(found, F.normalize(state, dim=-1))


def test_batches_do_not_matter(processor):
    made = encoder(processor)
    images, texts = made.encode_image(pictures()), made.encode_text(TEXTS)
    made.batch_size = 1
    torch.testing.assert_close(made.encode_image(pictures()), images)
    torch.testing.assert_close(made.encode_text(TEXTS), texts)
    assert images.dtype == torch.float32
    assert not images.requires_grad


def test_a_training_batch(processor):
    made = encoder(processor)
    batch = made.batch(pictures(), TEXTS, ["There is a dog.", None])
    ids, mask = batch["long_ids"], batch["long_mask"]
    assert processor.tokenizer.decode(ids[0][mask[0].bool()]) == " There is a dog.</s>"
    assert not mask[1].any()
    out = made.model(**batch)
    out.loss.backward()
    assert out.autoregressive > 0
    assert made.model(**made.batch(pictures(), TEXTS)).autoregressive == 0


def test_a_file_brings_it_back(processor, tmp_path):
    made = encoder(processor, image_prompt="Name it:", text_prompt="Say it in one word:")
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    path = tmp_path / "deep" / "adapter.safetensors"
    made.save(path)
    back = VladvaEncoder.load(lvlm(), processor, path)
    assert torch.equal(back.encode_image(pictures()), made.encode_image(pictures()))
    assert torch.equal(back.encode_text(TEXTS), made.encode_text(TEXTS))
    assert path.stat().st_size < 100_000


def test_bad_files(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        VladvaEncoder.load(lvlm(), processor, tmp_path / "nowhere")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="damaged"):
        VladvaEncoder.load(lvlm(), processor, broken)
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no VladVA adapter"):
        VladvaEncoder.load(lvlm(), processor, tmp_path / "other.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "wrong.safetensors", {"vladva": '{"rank": 2}'})
    host = lvlm()
    names = set(host.state_dict())
    with pytest.raises(ValueError, match="unknown names"):
        VladvaEncoder.load(host, processor, tmp_path / "wrong.safetensors")
    assert set(host.state_dict()) == names, "half adapted"


def test_nothing_to_encode(processor):
    made = encoder(processor)
    with pytest.raises(ValueError, match="nothing to encode"):
        made.encode_text([])
    with pytest.raises(ValueError, match=r"texts\[1\]"):
        made.encode_text(["a dog", " "])
