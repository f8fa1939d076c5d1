"""CoOp: the words around a class name as vectors that a few labelled pictures teach, with CLIP itself frozen.

    prompt_c = [start] [V_1] … [V_M] [name of c] [.]        V ~ N(0, 0.02²), for all classes or one set for each
    logits   = exp(scale) · cos(image, text(prompt_c))      cross-entropy, SGD, one epoch at 1e-5 and then a cosine

With descriptions d of a class each prompt reads "V_1 … V_M name, which is/has d.", and either the logits of a class's
prompts are averaged (AS) or their embeddings, before they are normalised (AE).

Kaiyang Zhou, Jingkang Yang, Chen Change Loy, Ziwei Liu: Learning to Prompt for Vision-Language Models. IJCV 2022,
arXiv 2109.01134; AS and AE from PCB, CVPR 2024, arXiv 2311.11178.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.adapt.base import mean_by_class
from foveal.adapt.base_classifier import FeatureClassifier, train_as_coop
from foveal.nn.cosine import unit_rows
from foveal.zoo.dual_encoder import DualEncoder

AGGREGATIONS = (None, "AS", "AE")

Descriptions = Mapping[str, Sequence[str]]
"""Class name to what it "is/has"."""


def average_similarity(
    logits: Float[Tensor, "b m"], class_index: Int[Tensor, " m"], num_classes: int
) -> Float[Tensor, "b k"]:
    """AS: the mean of each class's logits, one for each of its descriptions, in float32 or better.

    ValueError: a class has none.
    """
    return mean_by_class(logits, class_index, num_classes)


def average_embedding(
    text_features: Float[Tensor, "m d"], class_index: Int[Tensor, " m"], num_classes: int
) -> Float[Tensor, "k d"]:
    """AE: unit rows, each along the mean of a class's raw text embeddings, of which longer ones weigh more.

    ValueError: a class has none.
    """
    if text_features.ndim != 2:
        raise ValueError(f"text_features {tuple(text_features.shape)} must be (descriptions, D)")
    return unit_rows(mean_by_class(text_features.T, class_index, num_classes).T)


def prompt_texts(class_names: Sequence[str], descriptions: Descriptions | None) -> tuple[list[str], list[int]]:
    """What follows the context vectors in each prompt, and the class that the prompt belongs to.

    ValueError: no or repeated names, or a class without a description where there are descriptions.
    """
    names = [name.replace("_", " ") for name in class_names]
    if isinstance(class_names, str) or not names or len(set(names)) < len(names) or not all(map(str.strip, names)):
        raise ValueError(f"class_names={class_names!r}: must be a list of different names, none of them empty")
    if descriptions is None:
        return [f"{name}." for name in names], list(range(len(names)))
    if missing := [name for name in class_names if not descriptions.get(name) or isinstance(descriptions[name], str)]:
        raise ValueError(f"descriptions has no list for class {missing[0]!r}: give each class at least one")
    texts, index = [], []
    for k, (name, said) in enumerate(zip(class_names, names, strict=True)):
        texts += [f"{said}, which is/has {description}." for description in descriptions[name]]
        index += [k] * len(descriptions[name])
    return texts, index


class TextTower:
    """The text side of a dual encoder, fed with embeddings of tokens.

    Calling it embeds texts token by token, without positions. ``start`` is the number of special tokens in front (1 for
    CLIP, 0 for SigLIP): context vectors come behind them.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder, self.model = encoder, encoder.model
        self.embedding: nn.Module = self.model.text_model.get_input_embeddings()
        ids = encoder.tokenizer("a")["input_ids"]
        self.start = int(ids[0] in encoder.tokenizer.all_special_ids)
        self.placeholder = int(ids[self.start])
        """Stands for a context vector among the ids: any word, for it is never looked up."""

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "m l w"]:
        return self.embedding(self.encoder.tokens(texts)["input_ids"]).float()

    def inputs(self, texts: Sequence[str], n_ctx: int) -> dict[str, Tensor]:
        """Ids and mask with room for the context. ValueError: that is more than the model can read."""
        longest, inputs = self.encoder.longest, {}
        for name, rows in self.encoder.tokens(texts).items():
            fill = self.placeholder if name == "input_ids" else 1
            room = rows.new_full((len(rows), n_ctx), fill)
            inputs[name] = torch.cat([rows[:, : self.start], room, rows[:, self.start :]], 1)
        # a model such as SigLIP reads full-length texts only: the padding gives way
        cut = inputs["input_ids"][:, max(longest - 1, 0) :]
        if cut.shape[1] > 1 and not bool((cut == self.encoder.tokenizer.pad_token_id).all()):
            raise ValueError(f"n_ctx={n_ctx} and the longest prompt exceed the model's {longest} tokens: shorten one")
        return {name: rows[:, :longest] for name, rows in inputs.items()}

    def encode(self, embeddings: Float[Tensor, "m l w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "m d"]:
        """Text features, with gradients to ``embeddings``. What the ids say is only where a text ends."""
        length = inputs["input_ids"].shape[1]

        def instead(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            return embeddings[:, :length].to(output)

        hook = self.embedding.register_forward_hook(instead)
        try:
            output = self.model.get_text_features(**inputs)
        finally:
            hook.remove()
        return (output if isinstance(output, Tensor) else output.pooler_output).float()


class CoOpPrompt(nn.Module):
    """The prompts of all classes as embeddings of tokens, with the context as the only parameter, ``ctx``.

    Args:
        class_names: underscores are read as blanks.
        token_embedding: texts -> embeddings of their tokens, such as `TextTower`. Its attribute ``start`` says behind
            how many of them the context comes; without one it is 1, the start token.
        n_ctx: number of context vectors M.
        class_specific: a context for each prompt, instead of one for all.
        descriptions: see the module; each of them is a prompt, and has a context of its own when ``class_specific``.
        generator: what the context is drawn from.
    """

    class_index: Tensor
    """The class of each prompt."""
    prefix: Tensor
    suffix: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        token_embedding: Callable[[Sequence[str]], Float[Tensor, "m l w"]],
        n_ctx: int = 16,
        class_specific: bool = True,
        descriptions: Descriptions | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if n_ctx < 1:
            raise ValueError(f"n_ctx={n_ctx}: must be at least 1")
        self.texts, index = prompt_texts(class_names, descriptions)
        embedded = token_embedding(self.texts).detach()
        start = getattr(token_embedding, "start", 1)
        self.register_buffer("class_index", torch.tensor(index))
        self.register_buffer("prefix", embedded[:, :start], persistent=False)
        self.register_buffer("suffix", embedded[:, start:], persistent=False)
        context = torch.empty(*([len(index)] if class_specific else []), n_ctx, embedded.shape[-1])
        self.ctx = nn.Parameter(context.normal_(std=0.02, generator=generator).to(embedded))

    def forward(self) -> Float[Tensor, "m l w"]:
        ctx = self.ctx.expand(len(self.texts), -1, -1)
        return torch.cat([self.prefix, ctx, self.suffix], 1)


class CoOpLearner(FeatureClassifier):
    """CoOp as an estimator on cached image features; the encoder is shared and never changed.

    Args:
        clip: a `DualEncoder`, or a model with its processor such as ``zoo.load("nano-clip")``.
        class_names: label k stands for the k-th.
        epochs, lr, batch_size: of SGD.
        aggregation: "AS" or "AE", with ``descriptions``.
        n_ctx, class_specific: see `CoOpPrompt`.
        seed: of the first context and the order of the pictures.

    Attributes:
        prompt_: the learnt `CoOpPrompt`.

    ``X`` are image features (n, d) that need not be normalised, or pixel values (n, 3, h, w), which are encoded.
    """

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        *,
        epochs: int = 200,
        lr: float = 0.002,
        batch_size: int = 32,
        aggregation: str | None = None,
        descriptions: Descriptions | None = None,
        n_ctx: int = 16,
        class_specific: bool = True,
        seed: int = 0,
    ) -> None:
        self.clip, self.class_names = clip, class_names
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.aggregation, self.descriptions = aggregation, descriptions
        self.n_ctx, self.class_specific, self.seed = n_ctx, class_specific, seed

    def _num_classes(self) -> int:
        return len(self.class_names)

    def _fit(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        if self.aggregation not in AGGREGATIONS or (self.aggregation is None) != (self.descriptions is None):
            raise ValueError(
                f"aggregation={self.aggregation!r} with {'no' if self.descriptions is None else 'given'} descriptions: "
                "both or neither, and AS or AE"
            )
        generator = torch.Generator().manual_seed(self.seed)
        tower = TextTower(self._encoder())
        self.prompt_ = CoOpPrompt(
            self.class_names, tower, self.n_ctx, self.class_specific, self.descriptions, generator=generator
        )
        inputs = tower.inputs(self.prompt_.texts, self.n_ctx)
        device = self.prompt_.ctx.device
        images, labels = unit_rows(rows).to(device), labels.to(device)

        def loss(batch: Int[Tensor, " b"]) -> Tensor:
            return F.cross_entropy(self._scores(images[batch], tower.encode(self.prompt_(), inputs)), labels[batch])

        train_as_coop(
            loss,
            [self.prompt_.ctx],
            len(rows),
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            generator=generator,
        )
        with torch.no_grad():
            self.text_features_ = tower.encode(self.prompt_(), inputs)

    def _scores(self, images: Float[Tensor, "b d"], texts: Float[Tensor, "m d"]) -> Float[Tensor, "b k"]:
        index, classes = self.prompt_.class_index, self._num_classes()
        scale = self.clip.model.logit_scale.exp().detach()
        if self.aggregation == "AE":
            return scale * images @ average_embedding(texts, index, classes).T
        logits = scale * images @ unit_rows(texts).T
        return average_similarity(logits, index, classes) if self.aggregation == "AS" else logits

    def _logits(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self._scores(unit_rows(rows).to(self.text_features_.device), self.text_features_).cpu()

    @torch.no_grad()
    def _rows(self, X: Any) -> Float[Tensor, "n d"]:
        pixels = torch.as_tensor(X)
        if pixels.ndim == 4:
            model = self.clip.model
            output = model.get_image_features(pixel_values=pixels.to(model.device, model.dtype))
            X = (output if isinstance(output, Tensor) else output.pooler_output).float().cpu()
        return super()._rows(X)

    def _encoder(self) -> DualEncoder:
        return self.clip if isinstance(self.clip, DualEncoder) else DualEncoder(self.clip.model, self.clip.processor)
