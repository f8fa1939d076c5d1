"""One backbone and one decoder for all arms of GRAIN's recipe; what differs is the loss."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.nn.text import TextTransformer
from foveal.pretrain.grain import (
    GrainDecoder,
    GrainObjective,
    class_prototypes,
    image_caption_loss,
    region_description_loss,
    zero_shot_logits,
)
from foveal.recipes._creatures import LONGEST, WORDS, Parts, prompts, tokenize
from foveal.recipes._listed_tokens import WIDTH, Looks

QUERIES = 5


class CreatureTowers(nn.Module):
    """``loss``: "captions", "descriptions" (as further captions), "similarity" (regions without boxes) or "grain"."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        text = TextTransformer(LONGEST, len(WORDS), WIDTH, 2, 4, output_dim=WIDTH)
        nn.init.normal_(text.token_embedding.weight)  # CLIP's 0.02 suits a width of 512
        decoder = GrainDecoder(WIDTH, WIDTH, QUERIES, WIDTH, 4, 2, 2 * WIDTH, dropout=0.0)
        self.kind, self.objective = loss, GrainObjective(Looks(4, 4), text, decoder)

    def forward(self, **batch: Tensor) -> Tensor:
        """A batch of `_creature_pictures.collator`."""
        if self.kind == "grain":
            return self.objective(**batch).loss
        valid, objective = batch["valid"], self.objective
        found, scale = objective.decoder(objective.vision(batch["images"])), objective.logit_scale()
        loss = image_caption_loss(found.image, objective.text(batch["caption_ids"], batch["caption_mask"]), scale)
        if self.kind == "captions":
            return loss
        said = objective.text(batch["desc_ids"][valid], batch["desc_mask"][valid])
        desc = said.new_zeros(*valid.shape, said.shape[1]).index_put((valid,), said)
        if self.kind == "similarity":
            return loss + region_description_loss(found.regions, desc, valid, alike(found.regions, desc, valid), scale)
        parts = [
            image_caption_loss(found.image[row], desc[row, slot], scale)
            for slot, row in enumerate(valid.T)
            if row.any()
        ]
        return loss + torch.stack(parts).mean()

    def clamp(self) -> None:
        self.objective.logit_scale.clamp_()

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor, classes: tuple[Parts, ...]) -> float:
        """Zero-shot, in percent, from descriptions."""
        texts = [(row, text) for row, parts in enumerate(classes) for text in prompts(parts)]
        vectors = self.objective.text(*tokenize([text for _, text in texts]))
        prototypes = class_prototypes(vectors, torch.tensor([row for row, _ in texts]), len(classes))
        scores = zero_shot_logits(self.objective.encode_image(images), prototypes)
        return 100 * (scores.argmax(1) == labels).float().mean().item()

    @torch.no_grad()
    def recall(self, images: Tensor, captions: list[str]) -> float:
        """How often an image finds its own caption among all different ones, in percent."""
        texts = list(dict.fromkeys(captions))
        vectors = unit_rows(self.objective.text(*tokenize(texts)))
        best = (unit_rows(self.objective.encode_image(images)) @ vectors.T).argmax(1)
        return 100 * sum(texts[int(i)] == own for i, own in zip(best, captions, strict=True)) / len(captions)


@torch.no_grad()
def alike(regions: Tensor, desc: Tensor, valid: Tensor) -> Tensor:
    """The assignment of descriptions to regions by their cosines, where no box says which is which."""
    scores = unit_rows(regions) @ unit_rows(desc).mT
    match = torch.full(regions.shape[:2], -1, dtype=torch.int64)
    for row, table, seen in zip(match, scores, valid, strict=True):
        places = seen.nonzero()[:, 0]
        queries, columns = linear_sum_assignment(-table[:, places].numpy())
        row[torch.from_numpy(queries)] = places[torch.from_numpy(columns)]
    return match
