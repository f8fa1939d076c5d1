"""M3I on CLIP's towers: mixed pictures, a momentum encoder's features, texts; see `foveal.recipes._clip_learners`."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.pretrain.m3i import M3IObjective
from foveal.pretrain.m3i_decoders import patch_tokens
from foveal.recipes._clip_learners import Batch, Learner, caption_of, draws

MIRRORED = (1.0, 0.0, 0.0, 1.0)
"""Where view 2 lies in view 1."""


class M3i(Learner):
    """The other view is mirrored and of another contrast. M3I's pooling stands in the place of the class token."""

    def build(self) -> None:
        width = self.model.vision_embed_dim
        weights = {"intra": 2 / width, "inter": 2 / width, "text": 1.0}  # squared errors are sums over the width
        self.objective = M3IObjective(
            self.model.vision_model, self.text, width, self.model.projection_dim, None, weights
        )
        self.share(self.objective.semantic.logit_scale)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        rng, view = draws(), batch["pixels"]
        contrast = 0.7 + 0.6 * torch.rand(len(view), 1, 1, 1, generator=rng).to(view.device)
        ids, mask = self.tokenized([caption_of(sample) for sample in batch["samples"]])
        where = torch.tensor(MIRRORED, device=view.device).expand(len(view), 4)
        text = {"input_ids": ids, "attention_mask": mask}
        out = self.objective(view, contrast * view.flip(-1), text, generator=rng, relative=where)
        return {"loss": out.loss, **{name: -value for name, value in out.terms.items()}}

    def after_step(self) -> None:
        super().after_step()
        self.objective.after_step(min(int(self.finished) / self.steps, 1.0))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """With the momentum encoder's weights: no optimiser moves them, but a resumed run needs them."""
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        name = f"{prefix}.objective.target_encoder" if prefix else "objective.target_encoder"
        yield from self.objective.target_encoder.named_parameters(name)

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        return self.objective.pool(self.tokens(pixels))

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        return self.objective.norm(patch_tokens(self.objective.encoder, pixels)[0])

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p e"]:
        """What the pooling makes of one patch alone."""
        return self.objective.pool(self.tokens(pixels).flatten(0, 1)[:, None]).unflatten(0, (len(pixels), -1))
