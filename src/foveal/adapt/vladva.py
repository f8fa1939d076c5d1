"""VladVA: turn a chatting vision-language model into an embedding model that still reads word order and can still talk.

One language model embeds both sides: the state at the last token of a prompt that asks for a summary.

    image:  [visual tokens][soft prompt P_v]([long caption])       text:  [caption][soft prompt P_t]
    L_c  = (1/b) Σ_k [ −log softmax_j(s_kj)_k − log softmax_j(s_jk)_k ]     s = exp(p) · cosine, short captions
    L_ar = − mean over the long captions' tokens of log p(u_i | image, P_v, u_<i)
    L    = L_c + L_ar

Attention is causal: the caption after P_v does not touch the image's embedding, and one pass serves both losses. The
caption's first token is predicted from the summary itself, which therefore has to hold details. Only P_v, P_t, LoRA in
the language model's linear layers and the scale p are trained.

Long captions are of no use to L_c: every one is unique, and the loss falls to nothing without teaching anything.
`foveal.adapt.vladva_encoder` makes the prompts from the model's own chat template and embeds pictures and texts.

Yassine Ouali, Adrian Bulat, Alexandros Xenos, et al.: Discriminative Fine-tuning of LVLMs. CVPR 2025, arXiv 2412.04378.

Departures: the scale is learned from 1/0.07 and kept in [1, 100], about which the paper says nothing; prompts may stand
behind fixed tokens of the chat template (``image_prefix_ids``, ``text_prefix_ids``). With several processes L_c scores
the pairs of all of them, and L_ar is the mean over the tokens of all of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from foveal.adapt.vladva_host import Visual as Visual
from foveal.adapt.vladva_host import core, last_hidden, visual_tokens
from foveal.adapt.vladva_lora import LoRALinear as LoRALinear
from foveal.adapt.vladva_lora import SoftPrompt as SoftPrompt
from foveal.adapt.vladva_lora import add_lora as add_lora
from foveal.adapt.vladva_lora import lora_off as lora_off
from foveal.adapt.vladva_lora import merge_lora as merge_lora
from foveal.adapt.vladva_lora import remove_lora as remove_lora
from foveal.adapt.vladva_losses import contrastive_loss as contrastive_loss
from foveal.adapt.vladva_losses import cumulative_variance as cumulative_variance
from foveal.adapt.vladva_losses import mean_cross_entropy
from foveal.adapt.vladva_losses import next_token_loss as next_token_loss
from foveal.adapt.vladva_losses import prediction_entropy as prediction_entropy
from foveal.adapt.vladva_losses import split_by_length as split_by_length
from foveal.adapt.vladva_sequence import Assembled as Assembled
from foveal.adapt.vladva_sequence import assemble as assemble
from foveal.adapt.vladva_sequence import last_token_index as last_token_index
from foveal.adapt.vladva_sequence import summary_embedding as summary_embedding
from foveal.nn.gather import gather_features, mean_over_processes

MAX_SCALE = 100.0


@dataclass
class VladvaOutput:
    """Loss and its two terms, and the unit embeddings of this process's images and short captions."""

    loss: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    autoregressive: Float[Tensor, ""]
    image_embed: Float[Tensor, "b d"]
    text_embed: Float[Tensor, "b d"]


class VladvaModel(nn.Module):
    """A LLaVA-family model with soft prompts and LoRA. The model is frozen and adapted in place until `detach`.

    Training needs an optimiser on the parameters that require gradients, and `clamp_` after every step.

    Args:
        lvlm: see `foveal.adapt.vladva_host`.
        image_prompt_ids, text_prompt_ids: written prompts that the soft ones start from.
        rank, alpha, dropout: of LoRA in every linear layer of the language model's blocks.
        image_prefix_ids, text_prefix_ids: fixed tokens in front of the visual tokens and of the caption.
        generator: draws LoRA's factors A.

    Raises ValueError for a model without the parts it needs, ids outside its vocabulary, and a rank below 1.
    """

    def __init__(
        self,
        lvlm: Any,
        image_prompt_ids: Sequence[int] | Int[Tensor, " n"],
        text_prompt_ids: Sequence[int] | Int[Tensor, " m"],
        rank: int = 16,
        alpha: float = 16,
        *,
        dropout: float = 0.0,
        image_prefix_ids: Sequence[int] = (),
        text_prefix_ids: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        language = core(lvlm).language_model
        embedding = lvlm.get_input_embeddings()
        device = embedding.weight.device
        self.image_prompt = SoftPrompt.from_token_ids(embedding, image_prompt_ids)
        self.text_prompt = SoftPrompt.from_token_ids(embedding, text_prompt_ids)
        for name, ids in (("image_prefix_ids", image_prefix_ids), ("text_prefix_ids", text_prefix_ids)):
            wrong = [int(i) for i in ids if not 0 <= int(i) < len(embedding.weight)]
            if wrong:
                raise ValueError(f"{name} holds {wrong[0]}: token ids lie in 0..{len(embedding.weight) - 1}")
            self.register_buffer(
                name, torch.tensor([int(i) for i in ids], dtype=torch.long, device=device), persistent=False
            )
        trained = [parameter for parameter in lvlm.parameters() if parameter.requires_grad]
        modes = {name: module.training for name, module in lvlm.named_modules()}
        if add_lora(language, rank, alpha, dropout, generator=generator) == 0:
            raise ValueError(f"lvlm={type(lvlm).__name__} has no plain linear layer in its language model")
        lvlm.requires_grad_(False)
        for name, parameter in lvlm.named_parameters():
            parameter.requires_grad_(name.rsplit(".", 1)[-1] in ("lora_A", "lora_B"))
        self.lvlm = lvlm
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), device=device))
        self._trained_before, self._modes_before = trained, modes

    def train(self, mode: bool = True) -> "VladvaModel":
        """Training mode for what is trained; tower and projector stay in evaluation mode."""
        super().train(mode)
        inner = core(self.lvlm)
        for child in inner.children():
            if child is not inner.language_model:
                child.eval()
        return self

    # Embeddings

    def visual(self, pixel_values: Tensor, **image_inputs: Any) -> Visual:
        """Visual tokens, which training does not change; see `visual_tokens`."""
        return visual_tokens(self.lvlm, pixel_values, **image_inputs)

    def embed_image(self, pixel_values: Tensor, **image_inputs: Any) -> Float[Tensor, "b d"]:
        """Unit vectors of images; ``image_inputs``: what the image processor gives beside ``pixel_values``."""
        return self.embed_visual(self.visual(pixel_values, **image_inputs))

    def embed_visual(self, visual: Visual) -> Float[Tensor, "b d"]:
        """`embed_image` from visual tokens."""
        sequence = assemble(self._image_segments(visual))
        return summary_embedding(self._hidden(sequence, visual), sequence.mask)

    def embed_text(self, input_ids: Int[Tensor, "b l"], mask: Shaped[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors of captions, padded on either side; no special tokens.

        Raises ValueError for shapes that differ and an empty caption.
        """
        _check_captions("input_ids", input_ids, mask)
        last_token_index(mask)
        batch, prompt = len(input_ids), self.text_prompt(len(input_ids))
        segments = [self._fixed(self.text_prefix_ids, batch), (self._embed(input_ids), mask), _whole(prompt)]
        sequence = assemble([(emb.to(prompt.dtype), own) for emb, own in segments])
        return summary_embedding(self._hidden(sequence), sequence.mask)

    # Training

    def forward(
        self,
        pixel_values: Tensor,
        short_ids: Int[Tensor, "b s"],
        short_mask: Shaped[Tensor, "b s"],
        long_ids: Int[Tensor, "b l"] | None = None,
        long_mask: Shaped[Tensor, "b l"] | None = None,
        **image_inputs: Any,
    ) -> VladvaOutput:
        """Both losses; without long captions the contrastive one alone.

        Args:
            pixel_values, image_inputs: one image for each row, as the image processor gives them.
            short_ids, short_mask: its short caption.
            long_ids, long_mask: its long caption with the token that ends it; a row of the mask may be all false.

        Raises ValueError for rows that do not fit, empty short captions, and a loss that is not finite.
        """
        visual = self.visual(pixel_values, **image_inputs)
        return self.forward_visual(visual, short_ids, short_mask, long_ids, long_mask)

    def forward_visual(
        self,
        visual: Visual,
        short_ids: Int[Tensor, "b s"],
        short_mask: Shaped[Tensor, "b s"],
        long_ids: Int[Tensor, "b l"] | None = None,
        long_mask: Shaped[Tensor, "b l"] | None = None,
    ) -> VladvaOutput:
        """`forward` from visual tokens, which may be kept over epochs."""
        batch = len(visual.tokens)
        if len(short_ids) != batch:
            raise ValueError(f"short_ids has {len(short_ids)} rows for {batch} images: give one caption for each")
        text = self.embed_text(short_ids, short_mask)
        segments = self._image_segments(visual)
        caption = len(segments)
        if long_ids is not None:
            if long_mask is None or len(long_ids) != batch:
                raise ValueError(f"long_ids {tuple(long_ids.shape)} needs a long_mask and one row for each image")
            _check_captions("long_ids", long_ids, long_mask)
            segments.append((self._embed(long_ids).to(segments[0][0].dtype), long_mask))
        sequence = assemble(segments)
        hidden = self._hidden(sequence, visual)
        summary = last_token_index((sequence.segment >= 0) & (sequence.segment < caption))
        image = summary_embedding(hidden, index=summary)
        contrastive = self._contrast(image, text)
        autoregressive = contrastive.new_zeros(())
        if long_ids is not None and long_mask is not None:
            before = (sequence.segment == caption)[:, 1:]  # where the next place is a token of the caption
            targets = long_ids[long_mask.bool()]  # in the same order
            autoregressive = self._caption_loss(hidden[:, :-1][before], targets)
        return VladvaOutput(contrastive + autoregressive, contrastive, autoregressive, image, text)

    def _contrast(self, image: Float[Tensor, "b d"], text: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        gathered = {"all_image": gather_features(image), "all_text": gather_features(text)}
        return contrastive_loss(image, text, self.logit_scale.exp(), **gathered, rank=rank)

    def _caption_loss(self, hidden: Float[Tensor, "t d"], targets: Int[Tensor, " t"]) -> Float[Tensor, ""]:
        """The mean over the tokens of all processes, of which each has its own number."""
        loss = mean_cross_entropy(self.lvlm.get_output_embeddings()(hidden), targets)
        count = torch.tensor(float(len(targets)), device=loss.device)
        return loss * count / mean_over_processes(count).clamp(min=torch.finfo(count.dtype).tiny)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the scale back into [1, 100]; after every optimiser step."""
        self.logit_scale.clamp_(0, math.log(MAX_SCALE))

    # Adapters

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """Copies of all that is trained: soft prompts, LoRA, scale."""
        return {name: self.state_dict()[name].clone() for name in self._adapter_names()}

    def load_adapter_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """ValueError, with nothing loaded, for names or shapes that are not those of `adapter_state_dict`."""
        own = {name: value for name, value in self.named_parameters() if name in set(self._adapter_names())}
        if wrong := sorted(set(own) ^ set(state)):
            raise ValueError(f"state has missing or unknown names, {wrong[0]} among {len(wrong)}: another model?")
        for name, value in own.items():
            if state[name].shape != value.shape:
                raise ValueError(f"state[{name!r}] is {tuple(state[name].shape)}, not {tuple(value.shape)}: same rank?")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])

    def _adapter_names(self) -> list[str]:
        own = ("image_prompt.tokens", "text_prompt.tokens", "logit_scale")
        names = [name for name, _ in self.named_parameters()]
        return [name for name in names if name in own or name.rsplit(".", 1)[-1] in ("lora_A", "lora_B")]

    def merge(self) -> Any:
        """Make LoRA part of the weights; returns the model, which from now on talks as adapted and can be saved."""
        merge_lora(core(self.lvlm).language_model)
        return self.lvlm

    def detach(self) -> Any:
        """Take LoRA out again; returns the model as it was given, gradients and training mode on where they were."""
        remove_lora(core(self.lvlm).language_model)
        for parameter in self._trained_before:
            parameter.requires_grad_(True)
        for name, module in self.lvlm.named_modules():
            module.training = self._modes_before.get(name, module.training)
        return self.lvlm

    # Sequences

    def _image_segments(self, visual: Visual) -> list[tuple[Tensor, Tensor]]:
        batch, prompt = len(visual.tokens), self.image_prompt(len(visual.tokens))
        segments = [self._fixed(self.image_prefix_ids, batch), (visual.tokens, visual.mask), _whole(prompt)]
        return [(emb.to(prompt.dtype), own) for emb, own in segments]

    def _hidden(self, sequence: Assembled, visual: Visual | None = None) -> Float[Tensor, "b l d"]:
        precision = self.lvlm.get_input_embeddings().weight.dtype
        sequence = sequence._replace(embeds=sequence.embeds.to(precision))
        return last_hidden(self.lvlm, sequence, 1, visual.grid) if visual else last_hidden(self.lvlm, sequence)

    def _fixed(self, ids: Any, batch: int) -> tuple[Tensor, Tensor]:
        return _whole(self._embed(ids).expand(batch, -1, -1))

    def _embed(self, ids: Tensor) -> Tensor:
        return self.lvlm.get_input_embeddings()(ids)


def _whole(emb: Float[Tensor, "b l d"]) -> tuple[Tensor, Tensor]:
    """A segment without padding."""
    return emb, torch.ones(emb.shape[:2], dtype=torch.bool, device=emb.device)


def _check_captions(name: str, ids: Tensor, mask: Tensor) -> None:
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise ValueError(f"{name} {tuple(ids.shape)} and its mask {tuple(mask.shape)} must be (B, L) alike")
