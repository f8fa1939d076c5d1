"""A small language model that has read nothing but captions."""

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from foveal.lab import Run
from foveal.train import FitConfig, fit


def tiny_llama(
    run: Run, ids: Int[Tensor, "n l"], vocabulary: int, width: int = 128, layers: int = 2
) -> LlamaForCausalLM:
    """A Llama trained on the rows of ``ids`` for 300 steps of 64."""
    size = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    model = run.build(LlamaForCausalLM, LlamaConfig(vocab_size=vocabulary, **size))
    loss = lambda model, batch: model(input_ids=batch[0], labels=batch[0]).loss  # noqa: E731
    fit(model, TensorDataset(ids), steps=run.steps(300), loss=loss, config=FitConfig(lr=2e-3), on=run)
    return model
