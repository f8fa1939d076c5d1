"""nano-sd on a toy scale: stages that resume, a pipeline that loads, and the promises of the full one about size."""

import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from foveal.zoo import nano
from foveal.zoo.nano import sd, sd_autoencoder, sd_unet
from foveal.zoo.nano.scenes import HELD_OUT_SEED, SD_WORLD, DrawnScenes
from foveal.zoo.nano.sd_autoencoder import Latents, autoencoder_loss, build_autoencoder, encode_scenes, psnr
from foveal.zoo.nano.sd_unet import (
    CaptionedLatents,
    Denoiser,
    WeightAverage,
    build_scheduler,
    build_unet,
    denoising_loss,
    train_denoiser,
)

SETTINGS = replace(
    sd.SdTraining(),
    scenes=12,
    autoencoder_widths=(8, 8),
    unet_widths=(16, 16),
    unet_told=(False, True),
    unet_heads=2,
    latent_channels=2,
    steps=4,
    batch=4,
    longest_text=16,
)
LIMIT = 12_000_000


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder like nano-clip's."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer().train_new_from_iterator(["a red star and a dog on grass"] * 4, 300, show_progress=False)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**size, **words, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 16, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes():
    return DrawnScenes(SD_WORLD, 0, SETTINGS.scenes)


@pytest.fixture(scope="module")
def latents(scenes):
    return encode_scenes(build_autoencoder(SETTINGS), scenes)


@pytest.fixture
def tokenizer(text):
    return CLIPTokenizer.from_pretrained(text, model_max_length=SETTINGS.longest_text)


@pytest.fixture
def batches(scenes, latents, tokenizer):
    return CaptionedLatents(scenes, latents, tokenizer, 1000, SETTINGS)


@pytest.fixture
def denoiser(text, latents):
    encoder = CLIPTextModel.from_pretrained(text, dtype="float32")
    return Denoiser(build_unet(SETTINGS, latents, encoder.config.hidden_size), encoder, 0.5)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A smoke run: its checkpoint and its work folder."""
    place = tmp_path_factory.mktemp("sd")
    return sd.train(place / "out", place / "work", True, text), place / "work"


def test_checkpoint_is_a_standard_pipeline(trained, capfd, caplog):
    out, _ = trained
    pipeline = StableDiffusionPipeline.from_pretrained(out, dtype=torch.float32)
    assert "safety" not in capfd.readouterr().err + caplog.text
    assert pipeline.safety_checker is None
    assert not list(out.rglob("*.bin"))
    files = {name: value.dtype for part in ("unet", "vae", "text_encoder") for name, value in _stored(out / part)}
    assert set(files.values()) == {torch.float16}


def test_load_samples_in_float32_and_follows_the_seed(trained):
    pipeline = nano.load("nano-sd", trained[0])
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}

    def sample(seed, prompt="a red star"):
        generator = torch.Generator().manual_seed(seed)
        # Latents: after four steps of training the prompt moves them by less than the 1/255 that a picture rounds to.
        return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="latent").images

    assert (sample(0) == sample(0)).all()
    assert (sample(0) != sample(1)).any()
    assert (sample(0) != sample(0, "a dog")).any()
    assert np.array(pipeline("a red star", num_inference_steps=1).images[0]).shape == (64, 64, 3)


def test_finished_stages_are_not_repeated(trained, text, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(sd_autoencoder, "autoencoder_loss", never)
    monkeypatch.setattr(sd_unet, "denoising_loss", never)
    monkeypatch.setattr(sd_autoencoder, "track", never)  # the bar while latents are written
    again = sd.train(tmp_path / "out", trained[1], True, text)
    for part in ("unet", "vae", "text_encoder"):
        for (name, old), (_, new) in zip(_stored(trained[0] / part), _stored(again / part), strict=True):
            assert torch.equal(old, new), name


def test_resumed_run_ends_like_one_that_was_never_stopped(denoiser, batches, text, latents, tmp_path):
    whole = train_denoiser(denoiser, batches, build_scheduler(), SETTINGS, tmp_path / "whole")

    class Stopped(CaptionedLatents):
        def batch(self, number):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            return super().batch(number)

    def fresh():
        encoder = CLIPTextModel.from_pretrained(text, dtype="float32")
        return Denoiser(build_unet(SETTINGS, latents, encoder.config.hidden_size), encoder, 0.5)

    parts = (batches.scenes, latents, batches.tokenizer, 1000, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(fresh(), Stopped(*parts), build_scheduler(), SETTINGS, tmp_path / "cut")
    second = fresh()
    report = train_denoiser(second, CaptionedLatents(*parts), build_scheduler(), SETTINGS, tmp_path / "cut")
    assert report.resumed_from == 3
    assert report.losses == whole.losses
    for (name, old), new in zip(denoiser.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
    for name, value in second.unet.named_parameters():  # what is published is the average
        assert torch.equal(value, second.average.get_buffer("unet-" + name.replace(".", "-"))), name


def test_batch_is_a_function_of_its_number(batches):
    first = list(zip(range(3), batches, strict=False))[2][1]
    batches.load_state_dict({"next": 2})
    again = next(iter(batches))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noise"], batches.batch(3)["noise"])
    assert first["tokens"].shape == (4, 16)
    assert (first["timesteps"] // 250).tolist() == [0, 1, 2, 3]


def test_every_tenth_caption_is_left_out(batches):
    empty = sd_unet.tokenize(batches.tokenizer, [""])[0]
    unsaid = [bool((row == empty).all()) for number in range(200) for row in batches.batch(number)["tokens"]]
    assert 0.06 < np.mean(unsaid) < 0.14


def test_latents_have_unit_variance(batches):
    values = torch.cat([batches.batch(number)["latents"] for number in range(30)])
    assert values.std() == pytest.approx(1.0, abs=0.02)


def test_scale_counts_the_spread_of_means_and_of_samples():
    mean = np.array([[-1.0, 3.0]], np.float16).reshape(1, 2, 1, 1)  # variance 4
    assert Latents(mean, np.full_like(mean, 2.0), "").scale == pytest.approx(1 / math.sqrt(8))


def test_latents_are_those_of_the_pictures(scenes, latents):
    model = build_autoencoder(SETTINGS)
    with torch.no_grad():
        posterior = model.encode(sd_autoencoder.pixels(torch.from_numpy(scenes.images[7:8].copy()))).latent_dist
    assert np.allclose(latents.mean[7], posterior.mean[0], atol=1e-3)
    assert np.allclose(latents.std[7], posterior.std[0], atol=1e-3)


def test_another_encoder_has_other_latents(scenes, latents):
    model = build_autoencoder(replace(SETTINGS, seed=1))
    assert encode_scenes(model, scenes).digest != latents.digest


def test_last_noise_level_shows_nothing_of_the_picture():
    scheduler, picture, noise = build_scheduler(), torch.ones(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    last = torch.tensor([999])
    assert torch.equal(scheduler.add_noise(picture, noise, last), noise)
    assert torch.equal(scheduler.get_velocity(picture, noise, last), -picture)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999


def test_loss_of_a_perfect_guess_is_zero(batches):
    scheduler, batch = build_scheduler(), batches.batch(0)
    velocity = scheduler.get_velocity(batch["latents"], batch["noise"], batch["timesteps"])
    assert denoising_loss(lambda *_: velocity, batch, scheduler) == 0
    assert denoising_loss(lambda *_: velocity + 2, batch, scheduler) == pytest.approx(4)


def test_average_follows_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.25)
    start = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(start + 1)
    average.update(model)  # the first decay is 2/11
    assert average.get_buffer("weight").item() == pytest.approx(start + 9 / 11)
    average.update(model)  # 3/12
    assert average.get_buffer("weight").item() == pytest.approx(start + 1 - 2 / 11 / 4)
    average.copy_to(model)
    assert model.weight.item() == average.get_buffer("weight").item()


def test_autoencoder_loss_of_a_constant_error():
    model = build_autoencoder(SETTINGS)
    pictures = torch.zeros(1, 3, 16, 16)
    model.decode = lambda latents: type("Decoded", (), {"sample": torch.full_like(pictures, 0.5)})
    parts = autoencoder_loss(model, pictures, gradient_weight=1.0, prior_weight=0.0)
    assert parts["loss"].item() == parts["colour"].item() == 0.5 + 2 * 0.25
    model.decode = lambda latents: type("Decoded", (), {"sample": torch.arange(16.0).expand_as(pictures)})
    assert autoencoder_loss(model, pictures, 1.0, 0.0)["edges"].item() == 1.0


def test_standard_latents_decode_to_the_same_picture(scenes):
    model, pictures = build_autoencoder(SETTINGS), scenes.images[:8]
    pixels = sd_autoencoder.pixels(torch.from_numpy(pictures.copy()))
    with torch.no_grad():
        model.quant_conv.bias += 3.0
        before = model.decode(model.encode(pixels).latent_dist.mode()).sample
        width = (
            model.encode(pixels).latent_dist.std / model.encode(pixels).latent_dist.mean.std((0, 2, 3))[:, None, None]
        )
        sd_autoencoder.standardise(model, pictures)
        posterior = model.encode(pixels).latent_dist
        assert torch.allclose(model.decode(posterior.mode()).sample, before, atol=1e-4)
    assert torch.allclose(posterior.mean.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(posterior.mean.var((0, 2, 3)) + posterior.var.mean((0, 2, 3)), torch.ones(2), atol=1e-4)
    assert torch.allclose(posterior.std / posterior.mean.std((0, 2, 3))[:, None, None], width, rtol=1e-4)


def test_first_reconstruction_shows_the_picture(scenes):
    """What the initial weights are for: the first gradients see colours, not residual noise."""
    model = build_autoencoder(replace(SETTINGS, latent_channels=4))
    pixels = sd_autoencoder.pixels(torch.from_numpy(scenes.images[:8].copy()))
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
    assert posterior.mean.std() > 5 * posterior.std.mean()


def test_psnr_of_a_known_error(monkeypatch):
    model = build_autoencoder(SETTINGS)
    model.decode = lambda latents: type("Decoded", (), {"sample": torch.full((len(latents), 3, 64, 64), -0.8)})
    black = np.zeros((3, 64, 64, 3), np.uint8)
    assert psnr(model, black) == pytest.approx(20 * math.log10(2 / 0.2), abs=1e-3)


def test_full_model_fits_into_its_megabytes():
    """Weights in half precision, and half a megabyte for the tokenizer and the record."""
    settings = sd.SdTraining()
    text = CLIPTextConfig(
        vocab_size=3000,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.device("meta"):
        autoencoder = build_autoencoder(settings)
        side = 64 // 2 ** (len(settings.autoencoder_widths) - 1)
        shape = np.zeros((1, settings.latent_channels, side, side), np.float16)
        unet = build_unet(settings, Latents(shape, shape, ""), text.hidden_size)
        count = sum(p.numel() for part in (autoencoder, unet, CLIPTextModel(text)) for p in part.parameters())
    assert 2 * count + 500_000 < LIMIT


def test_training_scenes_are_not_the_held_out_ones():
    assert sd.SdTraining().seed < HELD_OUT_SEED


def test_train_without_nano_clip_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(nano, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="foveal train nano-clip"):
        sd.train(tmp_path / "out", tmp_path / "work", smoke=True)


def _stored(folder):
    from safetensors.torch import load_file

    (path,) = folder.glob("*.safetensors")
    return sorted(load_file(path).items())
