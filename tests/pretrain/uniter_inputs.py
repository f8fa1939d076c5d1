"""UNITER's objective for the contract: all tasks of one batch as one loss, its dict of inputs as a tuple of tensors."""

from types import SimpleNamespace

import torch
from torch import nn

from foveal.pretrain.uniter import UNITERConfig, UNITERForPretraining, UNITERObjective

TINY = UNITERConfig(
    vocab_size=20,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=8,
    dropout=0.0,
    img_dim=6,
    img_label_dim=5,
)
NAMES = (
    *("region_features", "region_positions", "detector_probs"),
    *("input_ids", "text_mask", "region_mask", "labels", "masked_regions", "targets"),
)


def model() -> UNITERForPretraining:
    """Random weights, larger than at the start of a training, so that inputs matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = UNITERForPretraining(TINY).eval()
        for parameter in tiny.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
    for name, parameter in tiny.named_parameters():
        parameter.requires_grad_(not name.endswith("key.bias"))  # softmax does not see it: its gradient is rounding
    return tiny


def inputs(batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Two masked words and two masked regions in every sample, so that a mean of means is the mean."""
    rng = torch.Generator().manual_seed(seed)
    features, positions = torch.randn(batch, 5, 6, generator=rng), torch.rand(batch, 5, 7, generator=rng)
    probabilities = torch.randn(batch, 5, 5, generator=rng).softmax(-1)
    ids, regions = torch.randint(1, 20, (batch, 7), generator=rng), torch.ones(batch, 5, dtype=torch.bool)
    text = torch.arange(7).expand(batch, 7) < 6
    regions[::2, 3] = False
    labels = torch.where(torch.tensor([False, True, False, True, False, False, False]), ids, -100)
    masked = torch.tensor([True, False, False, False, True]).expand(batch, 5)
    return features, positions, probabilities, ids, text, regions, labels, masked, torch.arange(batch) % 2


def hide(given):
    """Other features, places, classes and words wherever a mask hides them."""
    features, positions, probabilities, ids, text, regions, *rest = given
    other = [torch.where(regions[..., None], x, 7 + x) for x in (features, positions, probabilities)]
    return *other, torch.where(text, ids, (ids + 3) % 20), text, regions, *rest


class AllTasks(nn.Module):
    """mlm + mrfr + mrc_kl + itm; the matching loss weighs more, that wrong pairs show."""

    def __init__(self):
        super().__init__()
        self.objective = UNITERObjective(model())

    def forward(self, *tensors):
        batch = dict(zip(NAMES, tensors, strict=True))
        outs = {task: self.objective(task, batch) for task in ("mlm", "mrfr", "mrc_kl", "itm")}
        return SimpleNamespace(loss=sum(out.loss for out in outs.values()) + outs["itm"].wra)


def _changed(place, change):
    given = list(inputs(3, 0))
    given[place] = change(given[place])
    return tuple(given)


BAD = (
    lambda: _changed(0, lambda features: features[..., :5]),
    lambda: _changed(1, lambda positions: positions[:2]),
    lambda: _changed(3, lambda ids: torch.ones(3, 9, dtype=torch.long)),
    lambda: _changed(4, torch.zeros_like),
    lambda: _changed(5, torch.zeros_like),
    lambda: _changed(6, lambda labels: torch.full_like(labels, -100)),
    lambda: _changed(7, torch.zeros_like),
    lambda: _changed(8, lambda targets: targets + 1),
)
