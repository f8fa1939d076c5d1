"""M3I's objective for the contract: partners stay among three neighbours, so that two processes mix as one does."""

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from foveal.pretrain.m3i import M3IObjective


def vit() -> ViTModel:
    """A ViT of 4 × 4 patches; random weights, larger than at the start of a training, so that inputs matter."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = ViTModel(ViTConfig(**sizes, image_size=16, patch_size=4), add_pooling_layer=False).eval()
        for parameter in tiny.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.3)
    for name, parameter in tiny.named_parameters():
        key = "key" in name or "k_proj" in name
        parameter.requires_grad_(not (key and name.endswith("bias")))  # softmax does not see it
    return tiny


class Texts(nn.Module):
    """The mean of a text's word vectors."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)

    def forward(self, ids):
        return self.words(ids).mean(1)


def objective(**options) -> M3IObjective:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return M3IObjective(vit(), Texts(), 16, 8, num_classes=5, **options).eval()


class Objective(nn.Module):
    """The second view is the first one mirrored and darker."""

    def __init__(self):
        super().__init__()
        self.parts = objective(decoder_layers=1)
        self.parts.draw = self.draw

    @staticmethod
    def draw(batch, patches, generator):
        """Neighbours by threes, the half of the patches by the place among them."""
        rows = torch.arange(batch)
        size = torch.minimum(torch.tensor(3), batch - 3 * (rows // 3))
        partner = 3 * (rows // 3) + (rows % 3 + 1) % size
        return partner, (torch.arange(patches)[None] + rows[:, None] % 3) % 2 == 0

    def forward(self, view, ids, labels, has_text, has_label):
        mirrored = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).expand(len(view), 4)
        generator = torch.Generator().manual_seed(0)
        return self.parts(view, 0.8 * view.flip(-1), ids, labels, has_text, has_label, generator, mirrored)


def inputs(batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    view, ids = torch.randn(batch, 3, 16, 16, generator=rng), torch.randint(0, 20, (batch, 4), generator=rng)
    return view, ids, torch.arange(batch) % 5, torch.arange(batch) % 3 != 1, torch.arange(batch) % 4 == 0


def hide(given):
    """Other texts and labels where a sample has none."""
    view, ids, labels, has_text, has_label = given
    return view, torch.where(has_text[:, None], ids, 19 - ids), torch.where(has_label, labels, -7), has_text, has_label


def _changed(place, change):
    given = list(inputs(3, 0))
    given[place] = change(given[place])
    return tuple(given)


BAD = (
    lambda: _changed(0, lambda view: view[:, :2]),
    lambda: _changed(0, lambda view: view[0]),
    lambda: _changed(2, lambda labels: labels + 5),
    lambda: _changed(3, lambda has_text: has_text[:2]),
    lambda: _changed(4, lambda has_label: has_label[:2]),
)
